"""Which queries are next, and what each may cost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Attempt, PlanRow, QueryRow
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.drafts import Draft, choose_strategy, draft_plans
from scheduler.planning import choose_window, fund_window
from scheduler.prediction import FixedPriors
from scheduler.settings import Settings
from scheduler.states import QueryState
from scheduler.tokens import TEMPLATE_TOKENS
from scheduler.types import Verdict, VerifierSpec
from tests.factories import NOW, add_batch, add_cap, add_query, add_tenant, add_worker, new_sessions

SETTINGS = Settings(window_size=16)
JUDGE = VerifierSpec(kind=Verdict.NUMERIC, reference="21")
READER = VerifierSpec(kind=Verdict.NUMERIC)


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


def window(session: Session, rotation: DeficitRoundRobin | None = None) -> list[QueryRow]:
    return list(choose_window(session, rotation or DeficitRoundRobin(), SETTINGS, NOW))


def drafts(session: Session) -> list[Draft]:
    return draft_plans(session, window(session), FixedPriors(), SETTINGS, NOW)


@pytest.mark.parametrize(
    ("wanted", "verifier", "samples_max", "temperature", "strategy"),
    [
        ("direct", JUDGE, 8, None, "direct"),
        ("auto", JUDGE, None, None, "best_of_n"),
        ("auto", READER, None, None, "self_consistency"),
        ("auto", None, 8, None, "self_consistency"),
        ("auto", None, None, None, "direct"),
        ("auto", JUDGE, 1, None, "direct"),
        ("auto", JUDGE, 8, 0, "direct"),
    ],
)
def test_auto_picks_by_what_the_query_carries(
    wanted: str, verifier: VerifierSpec | None, samples_max: int | None, temperature: float | None, strategy: str
) -> None:
    assert choose_strategy(wanted, verifier, samples_max, temperature) == strategy


def test_nothing_is_planned_while_no_worker_lives(session: Session) -> None:
    add_query(session, add_batch(session, add_tenant(session)))
    add_worker(session, heartbeat_at=NOW - timedelta(hours=1))

    assert window(session) == []


def test_planning_runs_only_a_little_ahead_of_the_workers(session: Session) -> None:
    batch = add_batch(session, add_tenant(session))
    for _ in range(10):
        add_query(session, batch)
    add_worker(session, capacity=2)

    fund_window(session, drafts(session), NOW)

    assert session.scalar(select(func.count()).select_from(Attempt)) == 4
    assert window(session) == []


def test_a_small_tenants_lines_are_in_the_first_window_behind_a_large_batch(session: Session) -> None:
    add_worker(session, capacity=64)
    large = add_batch(session, add_tenant(session, "large"))
    for _ in range(200):
        add_query(session, large)
    small = add_batch(session, add_tenant(session, "small"))
    mine = {add_query(session, small).id for _ in range(5)}

    planned = {query.id for query in window(session)}

    assert mine <= planned
    assert len(planned) == SETTINGS.window_size


def test_a_heavier_tenant_gets_its_share(session: Session) -> None:
    add_worker(session, capacity=64)
    for name, weight in (("light", 1.0), ("heavy", 3.0)):
        batch = add_batch(session, add_tenant(session, name, weight=weight))
        for _ in range(50):
            add_query(session, batch)

    tenants = [query.tenant_id for query in window(session)]

    assert tenants.count("tenant_heavy") == 3 * tenants.count("tenant_light")


def test_priority_goes_first_within_a_tenant(session: Session) -> None:
    add_worker(session, capacity=1)
    batch = add_batch(session, add_tenant(session))
    for _ in range(5):
        add_query(session, batch)
    urgent = add_query(session, batch, priority=9)

    assert window(session)[0].id == urgent.id


def test_a_plan_stays_within_the_models_context(session: Session) -> None:
    add_worker(session)
    batch = add_batch(session, add_tenant(session))
    add_query(session, batch, prompt_tokens_estimated=4000, tokens_max=500)

    [draft] = drafts(session)

    assert draft.plan.tokens_max == 4096 - 4000 - TEMPLATE_TOKENS


def test_queries_no_cap_can_pay_are_parked_without_an_attempt(session: Session) -> None:
    add_worker(session)
    tenant = add_tenant(session)
    cap = add_cap(session, tenant, 10)
    query = add_query(session, add_batch(session, tenant))

    funded = fund_window(session, drafts(session), NOW)

    session.refresh(query)
    assert funded == []
    assert query.state == QueryState.PARKED
    assert cap.id in (query.parked_because or "")


def test_a_query_taken_meanwhile_is_not_planned_twice(session: Session) -> None:
    add_worker(session)
    query = add_query(session, add_batch(session, add_tenant(session)))
    twice = drafts(session)
    fund_window(session, twice, NOW)

    assert fund_window(session, twice, NOW) == []
    assert session.scalar(select(func.count()).select_from(PlanRow)) == 1
    session.refresh(query)
    assert query.attempts == 1


def test_a_disabled_tenants_queries_wait(session: Session) -> None:
    add_worker(session)
    add_query(session, add_batch(session, add_tenant(session, disabled_at=NOW)))

    assert window(session) == []


@pytest.mark.parametrize("body", [{"temperature": 0}, {"temperature": 1e-6}, {"top_k": 1}])
@pytest.mark.parametrize("strategy", ["best_of_n", "self_consistency"])
def test_greedy_sampling_is_given_one_sample_whatever_was_asked(
    session: Session, body: dict[str, float], strategy: str
) -> None:
    add_worker(session)
    batch = add_batch(session, add_tenant(session))
    add_query(session, batch, body=body, strategy=strategy, samples_max=16, verifier="numeric", reference="21")

    [draft] = drafts(session)

    assert draft.plan.samples_max == 1
