"""Real vLLM, killed in mid-batch with everything it has started: the batch completes, and the books balance."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import QueryRow, SampleRow, Wave
from scheduler.audit import discrepancies
from scheduler.database import reading
from scheduler.states import QUERY_FINAL, BatchState, WaveState
from tests.deployment import deployment, sums
from tests.integration.test_real_vllm import CALM, add_price, cost_of_samples_nanousd, spent_nanousd
from tests.llm import NAME, LlmServer, llm_server, processes_of_session
from tests.services import Valkey

LINES = 24


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_batch_outlives_its_model_server_twice(valkey: Valkey, llm: LlmServer, tmp_path: Path) -> None:
    """The run's own server is the first to die: tests are ordered so that none comes after this one."""
    port = urlsplit(llm.url).port
    lines = sums(LINES, samples_max=4)
    for line in lines:
        line["body"]["model"] = NAME
    url = f"sqlite:///{tmp_path}/allotd.db"
    settings = CALM | {"llm_url": llm.url, "in_flight_max": "16", "bundle_size": "8"}
    with deployment(url, valkey.url, tmp_path, engine="vllm", **settings) as stack:
        tenant_id = stack.add_tenant()
        add_price(stack, NAME)
        batch_id = stack.submit(tenant_id, lines)
        stack.start("worker")
        stack.start("daemon")
        stack.wait_for(partial(is_in_the_middle, samples=3), timeout_s=120)
        kill_session(llm.pid)
        with llm_server(tmp_path / "vllm-2.log", port=port) as second:
            stack.wait_for(partial(is_in_the_middle, samples=10), timeout_s=120)
            kill_session(second.pid)
        with llm_server(tmp_path / "vllm-last.log", port=port):
            ended = stack.wait_for_batch(batch_id, timeout_s=240)

        with reading(stack.sessions) as session:
            assert ended is BatchState.COMPLETED
            states = session.scalars(select(QueryRow.state)).all()
            assert len(states) == LINES
            assert set(states) <= QUERY_FINAL
            assert [str(found) for found in discrepancies(session)] == []
            assert spent_nanousd(session) == cost_of_samples_nanousd(session)
            whole = select(func.count()).where(SampleRow.finish_reason.in_(["stop", "length"]))
            assert max(session.scalars(whole.group_by(SampleRow.query_id))) <= 4


def is_in_the_middle(session: Session, samples: int) -> bool:
    """Whether so many samples are paid for while waves run."""
    held = session.scalar(select(func.count()).where(Wave.state == WaveState.HELD)) or 0
    return held > 0 and (session.scalar(select(func.count()).select_from(SampleRow)) or 0) >= samples


def kill_session(session: int) -> None:
    """Kill -9 all processes of the server at once."""
    for one in processes_of_session(session):
        with suppress(psutil.NoSuchProcess):
            one.kill()
