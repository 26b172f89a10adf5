"""A tenant that meets its cap waits, spends what it was given, and goes on by itself when it is given more."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Alert, QueryRow, SampleRow, Tenant, Worker
from scheduler.audit import discrepancies
from scheduler.caps import CapStatus, list_caps, set_cap
from scheduler.core.periods import Period
from scheduler.core.pricing import parse_usd
from scheduler.recovery import resumable
from scheduler.states import BatchState, QueryState
from scheduler.types import AlertKind
from scheduler.wiring import utc_now
from tests.deployment import Deployment, deployment, sums
from tests.services import Valkey

CAP = parse_usd("0.01")
LINES = 100
"""At about 600 completion tokens of 200 nano-dollars in each of three samples, worth a little more than 0.03 USD."""
SAMPLES = 3
TOKENS_MAX = 1024


@pytest.fixture
def stack(new_database: Callable[[], str], valkey: Valkey, tmp_path: Path) -> Iterator[Deployment]:
    """A fake engine whose samples are never right, so that every query uses its whole budget."""
    options = json.dumps({"success_alpha": 0.001, "success_beta": 1000.0, "tokens_median": 600.0, "seed": 7})
    settings = {"fake_engine": options, "in_flight_max": "32", "lease_s": "30"}
    with deployment(new_database(), valkey.url, tmp_path, **settings) as made:
        yield made


def lines(count: int) -> list[dict[str, Any]]:
    """Sums whose answers may be long; they name their strategy, so that no price takes samples from them."""
    asked = sums(count, samples_max=SAMPLES, strategy="best_of_n")
    return [line | {"body": line["body"] | {"max_tokens": TOKENS_MAX}} for line in asked]


def status(stack: Deployment) -> CapStatus:
    with stack.sessions() as session:
        [cap] = list_caps(session, None, utc_now())
        return cap


def cap(stack: Deployment, tenant_id: str, limit_nanousd: int) -> None:
    with stack.sessions.begin() as session:
        tenant = session.get_one(Tenant, tenant_id)
        set_cap(session, tenant, limit_nanousd=limit_nanousd, period=Period.TOTAL, soft=0.5, now=utc_now())


def everything_waits(session: Session) -> bool:
    """Whether every query is parked or over, no money is held, and too little is left for the next in line."""
    moving = [QueryState.QUEUED, QueryState.PLANNED, QueryState.RUNNING]
    is_taken_in = session.scalar(select(func.count()).select_from(QueryRow)) == LINES
    is_moving = session.scalar(select(func.count()).where(QueryRow.state.in_(moving)))
    [cap] = list_caps(session, None, utc_now())
    return is_taken_in and not is_moving and not cap.held_nanousd and not resumable(session, utc_now(), 1)


def first_wave(session: Session) -> int:
    """The most that the smallest wave of the query next in line may cost."""
    parked = select(QueryRow.parked_need_nanousd).where(QueryRow.state == QueryState.PARKED)
    return session.scalar(parked.order_by(QueryRow.id).limit(1)) or 0


def test_a_cap_of_one_cent_stops_a_batch_worth_three_and_raising_it_finishes_the_batch(stack: Deployment) -> None:
    tenant_id = stack.add_tenant()
    cap(stack, tenant_id, CAP)
    batch_id = stack.submit(tenant_id, lines(LINES))
    for name in ("worker", "daemon"):
        stack.start(name)
    stack.wait_for(everything_waits, timeout_s=240)

    stopped = status(stack)
    states = stack.states()
    with stack.sessions() as session:
        need = first_wave(session)
        kinds = session.scalars(select(Alert.kind).order_by(Alert.kind)).all()
        drawn = session.scalar(select(func.count()).select_from(SampleRow)) or 0
    cap(stack, tenant_id, 10 * CAP)
    ended = stack.wait_for_batch(batch_id, timeout_s=240)

    assert stopped.spent_nanousd <= CAP
    assert stopped.phantom_block_nanousd is not None
    assert stopped.phantom_block_nanousd < need
    assert CAP - stopped.spent_nanousd < need
    assert states[QueryState.PARKED] + states[QueryState.ANSWERED] == LINES
    assert kinds == [AlertKind.CAP_REACHED, AlertKind.CAP_SOFT]
    assert ended is BatchState.COMPLETED
    assert stack.states() == {QueryState.ANSWERED: LINES}
    assert status(stack).spent_nanousd >= 3 * CAP
    with stack.sessions() as session:
        assert list(discrepancies(session)) == []
        assert 0 < drawn < (session.scalar(select(func.count()).select_from(SampleRow)) or 0) == SAMPLES * LINES


def test_the_queries_of_an_engine_that_lies_go_on_elsewhere_and_its_worker_stops_when_asked(stack: Deployment) -> None:
    tenant_id = stack.add_tenant()
    batch_id = stack.submit(tenant_id, lines(40))
    liar = stack.start("worker-liar", fake_engine=json.dumps({"overrun_rate": 1.0}))
    stack.start("daemon")
    stack.wait_for(lambda session: bool(session.scalar(select(Worker.quarantined_because))), timeout_s=240)

    stack.start("worker-honest")
    ended = stack.wait_for_batch(batch_id, timeout_s=240)
    stack.kill("worker-liar", signal.SIGTERM)

    assert ended is BatchState.COMPLETED
    assert set(stack.states()) == {QueryState.ANSWERED}
    assert liar.returncode == 0
    with stack.sessions() as session:
        assert session.scalars(select(Alert.kind)).all() == [AlertKind.ENGINE_QUARANTINED]
        assert list(discrepancies(session)) == []
        [stopped] = session.scalars(select(Worker).where(Worker.quarantined_because.is_not(None)))
        assert stopped.stopped_at is not None
