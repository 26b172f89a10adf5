"""Real vLLM, killed in mid-batch with everything it has started: the batch completes, and the books balance."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

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
from tests.llm import NAME, free_port, llm_server, processes_of_session
from tests.services import Valkey

LINES = 24
KILLS = 2


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_batch_outlives_its_model_server_twice(valkey: Valkey, tmp_path: Path) -> None:
    port = free_port()
    lines = sums(LINES, samples_max=4)
    for line in lines:
        line["body"]["model"] = NAME
    url = f"sqlite:///{tmp_path}/allotd.db"
    settings = CALM | {"llm_url": f"http://127.0.0.1:{port}/v1", "in_flight_max": "16", "bundle_size": "8"}
    with deployment(url, valkey.url, tmp_path, engine="vllm", **settings) as stack:
        tenant_id = stack.add_tenant()
        add_price(stack, NAME)
        batch_id = stack.submit(tenant_id, lines)
        stack.start("worker")
        stack.start("daemon")
        for number in range(KILLS):
            with llm_server(tmp_path / f"vllm-{number}.log", port=port) as server:
                stack.wait_for(partial(is_in_the_middle, settled=5 * (number + 1)), timeout_s=120)
                kill_session(server.pid)
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


def is_in_the_middle(session: Session, settled: int) -> bool:
    """Whether so many waves are paid for while others run."""
    rows = session.execute(select(Wave.state, func.count()).group_by(Wave.state))
    counts = {row[0]: row[1] for row in rows}
    return counts.get(WaveState.SETTLED, 0) >= settled and counts.get(WaveState.HELD, 0) > 0


def kill_session(session: int) -> None:
    """Kill -9 all processes of the server at once."""
    for one in processes_of_session(session):
        with suppress(psutil.NoSuchProcess):
            one.kill()
