"""The disk under a SQLite deployment is full in mid-batch, twice: everything waits, nothing is lost, and it goes on."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import SampleRow, Wave
from scheduler.audit import discrepancies
from scheduler.database import reading
from scheduler.states import BatchState, QueryState, WaveState
from tests.deployment import Deployment, deployment, sums
from tests.services import Valkey

QUERIES = 60
SAMPLES = 4
FULL_S = 2.5
ENGINE = json.dumps({"time_scale": 1.0, "tokens_per_s": 40.0, "tokens_median": 20.0, "first_token_s": 0.1, "seed": 5})


def test_a_disk_that_is_full_for_a_while_loses_nothing(valkey: Valkey, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/allotd.db"
    with deployment(url, valkey.url, tmp_path, fake_engine=ENGINE, in_flight_max="16", attempts_max="100") as stack:
        batch_id = stack.submit(stack.add_tenant(), sums(QUERIES, samples_max=SAMPLES, strategy="self_consistency"))
        stack.start("worker")
        stack.start("daemon")
        for settled in (1, 40):
            stack.wait_for(partial(is_under_way, settled=settled))
            with full_disk(stack):
                time.sleep(FULL_S)

        assert stack.wait_for_batch(batch_id) is BatchState.COMPLETED

        with reading(stack.sessions) as session:
            assert stack.states() == {QueryState.ANSWERED: QUERIES}
            assert [str(found) for found in discrepancies(session)] == []
            drawn = select(func.count()).where(SampleRow.finish_reason == "stop").group_by(SampleRow.query_id)
            assert max(session.scalars(drawn)) <= SAMPLES
        said = (tmp_path / "worker.log").read_text() + (tmp_path / "daemon.log").read_text()
        assert "Traceback" not in said


def is_under_way(session: Session, settled: int) -> bool:
    rows = session.execute(select(Wave.state, func.count()).group_by(Wave.state))
    counts = {row[0]: row[1] for row in rows}
    return counts.get(WaveState.SETTLED, 0) >= settled and counts.get(WaveState.HELD, 0) > 0


@contextmanager
def full_disk(stack: Deployment) -> Iterator[None]:
    """No file may grow beyond a few bytes, so that whatever the parts write fails. Nobody needs to be root for it."""
    parts = [psutil.Process(process.pid) for process in stack.processes.values()]
    before = [part.rlimit(resource.RLIMIT_FSIZE) for part in parts]
    for part, (_, hard) in zip(parts, before, strict=True):
        part.rlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        for part, limits in zip(parts, before, strict=True):
            part.rlimit(resource.RLIMIT_FSIZE, limits)
