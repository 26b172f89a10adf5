"""The demo's 120 questions on real vLLM: every line accounted for, every nano-dollar explained, samples saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Entry, PriceRow, QueryRow, SampleRow, Wave
from ops.demo.workload import WORKLOAD
from scheduler import reports
from scheduler.audit import discrepancies
from scheduler.database import reading
from scheduler.states import QUERY_FINAL, BatchState
from scheduler.wiring import utc_now
from tests.deployment import Deployment, deployment
from tests.llm import LlmServer
from tests.services import Valkey

CALM = {"heartbeat_s": "5", "lease_s": "30", "redispatch_s": "30"}
"""Production's times: the model server shares its few cores with us."""


@pytest.mark.vllm
def test_a_batch_on_real_vllm_is_accounted_for_to_the_nanodollar_and_saves_samples(
    llm: LlmServer, valkey: Valkey, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in WORKLOAD.read_text().splitlines()[::2]]
    database = f"sqlite:///{tmp_path}/allotd.db"
    with deployment(database, valkey.url, tmp_path, engine="vllm", llm_url=llm.url, **CALM) as stack:
        tenant_id = stack.add_tenant()
        add_price(stack, llm.name)
        batch_id = stack.submit(tenant_id, lines)
        stack.start("worker")
        stack.start("daemon")

        ended = stack.wait_for_batch(batch_id, timeout_s=500)

        with reading(stack.sessions) as session:
            assert ended is BatchState.COMPLETED
            assert [str(found) for found in discrepancies(session)] == []
            states = stack.states()
            assert sum(states[state] for state in states if state in QUERY_FINAL) == len(lines) == 60
            assert spent_nanousd(session) == cost_of_samples_nanousd(session)
            scope = reports.Scope(tenant_id=tenant_id)
            groups = reports.spend_report(session, scope, reports.By.STRATEGY, utc_now()).groups
            [votes] = [group for group in groups if group.key == "self_consistency"]
            assert votes.queries == 20
            assert votes.queries <= votes.samples < 8 * votes.queries
            asked = select(func.sum(QueryRow.samples_drawn)).where(QueryRow.strategy == "self_consistency")
            assert session.scalar(asked) == votes.samples


def add_price(stack: Deployment, model: str) -> None:
    """50 nano-dollars per prompt token, 200 per completion token."""
    now = utc_now()
    prices = {"prompt_nanousd": 50, "cached_nanousd": 50, "completion_nanousd": 200}
    with stack.sessions.begin() as session:
        session.add(PriceRow(model=model, effective_at=now, created_at=now, **prices))


def spent_nanousd(session: Session) -> int:
    """What the ledger says was spent."""
    return session.scalar(select(func.sum(Entry.spent_delta_nanousd))) or 0


def cost_of_samples_nanousd(session: Session) -> int:
    """The tokens of all samples and of the prompts of all waves, at their price."""
    completion = session.scalar(select(func.sum(SampleRow.tokens))) or 0
    prompt = session.scalar(select(func.sum(Wave.prompt_tokens))) or 0
    return 200 * completion + 50 * prompt
