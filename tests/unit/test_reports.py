"""Reports agree with the ledger to the nano-dollar, and say what the money bought."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from models.tables import Batch, PlanRow, Tenant
from scheduler import ledger
from scheduler.caps import set_cap
from scheduler.core.periods import Period
from scheduler.ledger import WaveRequest
from scheduler.reports import By, Scope, SpendReport, spend_report
from scheduler.spend_groups import SpendGroup
from scheduler.states import QueryState
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, fund, new_sessions
from tests.unit.answering import PROMPT_TOKENS, TOKENS, answer, wave_nanousd

EVERYTHING = Scope()


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


@pytest.fixture
def tenant(session: Session) -> Tenant:
    return add_tenant(session)


@pytest.fixture
def batch(session: Session, tenant: Tenant) -> Batch:
    return add_batch(session, tenant)


def report(session: Session, by: By = By.TENANT, scope: Scope = EVERYTHING) -> SpendReport:
    return spend_report(session, scope, by, NOW)


def keys(session: Session, by: By, scope: Scope = EVERYTHING) -> dict[str | None, SpendGroup]:
    return {group.key: group for group in report(session, by, scope).groups}


def test_an_empty_ledger_makes_an_empty_report(session: Session) -> None:
    total = report(session).total

    assert (total.queries, total.cost_nanousd, total.accuracy, total.saving_ratio) == (0, 0, None, None)
    assert (total.latency_p50_s, total.prompt_estimate_error, total.cost_per_correct_nanousd) == (None, None, None)


def test_the_cost_is_the_sum_of_the_entries(session: Session, tenant: Tenant, batch: Batch) -> None:
    for samples in (1, 3):
        answer(session, batch, *["21"] * samples)

    total = report(session).total

    session.refresh(tenant)
    assert total.cost_nanousd == tenant.spent_nanousd == wave_nanousd(1) + wave_nanousd(3)


def test_money_that_is_only_held_is_not_spent(session: Session, batch: Batch) -> None:
    funded = fund(session, add_query(session, batch))
    ledger.reserve(
        session, WaveRequest(funded=funded, samples=1, tokens_max=50, tokens_floor=50, prompt_tokens=10), NOW
    )

    [group] = report(session).groups

    assert (group.cost_nanousd, group.queries, group.prompt_tokens) == (0, 0, 0)


def test_all_tokens_count_and_those_not_chosen_are_told(session: Session, batch: Batch) -> None:
    answer(session, batch, "21", "21", "22")
    answer(session, batch, "no", state=QueryState.FAILED)

    total = report(session).total

    assert (total.prompt_tokens, total.cached_tokens) == (2 * PROMPT_TOKENS, 8)
    assert (total.completion_tokens, total.reasoning_tokens) == (4 * TOKENS, 2)
    assert total.discarded_tokens == 3 * TOKENS


def test_outcomes_are_never_folded_together(session: Session, batch: Batch) -> None:
    answer(session, batch, "21")
    answer(session, batch, "21", state=QueryState.BUDGET_STOPPED)
    answer(session, batch, "21", state=QueryState.FAILED)
    add_query(session, batch, state=QueryState.FAILED, model=None, finished_at=NOW)
    add_query(session, batch)

    total = report(session).total

    assert dict(total.outcomes) == {"answered": 1, "budget_stopped": 1, "failed": 2}
    assert total.queries == 4


def test_accuracy_is_over_the_labelled_and_their_cost_over_the_right(session: Session, batch: Batch) -> None:
    answer(session, batch, "21", correct=True)
    answer(session, batch, "22", correct=False)
    answer(session, batch, "23")

    total = report(session).total

    assert (total.labelled, total.correct, total.accuracy) == (2, 1, 0.5)
    assert total.cost_per_correct_nanousd == 3 * wave_nanousd(1)


def test_the_saving_is_against_the_batchs_largest_sample_budget_for_every_query(session: Session, batch: Batch) -> None:
    answer(session, batch, "21")
    answer(session, batch, "21", "21")

    total = report(session).total

    uniform = wave_nanousd(1) * 8 + wave_nanousd(2) * 8 // 2  # 8 samples are planned (tests.factories.fund)
    assert total.uniform_cost_nanousd == uniform
    assert total.saving_ratio == uniform / (wave_nanousd(1) + wave_nanousd(2))


def test_only_queries_with_an_outcome_of_their_own_count_for_samples_per_query_and_saving(
    session: Session, batch: Batch
) -> None:
    answer(session, batch, "21", "21")
    before = report(session).total
    answer(session, batch, "no", "no", "no", state=QueryState.FAILED)
    answer(session, batch, "21", "21", "21").state = QueryState.CANCELLED
    add_query(session, batch, state=QueryState.EXPIRED, finished_at=NOW)
    session.flush()

    after = report(session).total

    assert (after.samples, after.samples_per_query) == (8, before.samples_per_query)
    assert (after.uniform_cost_nanousd, after.saving_ratio) == (before.uniform_cost_nanousd, before.saving_ratio)


def test_a_batchs_largest_budget_does_not_reach_another_batch(session: Session, tenant: Tenant) -> None:
    small, large = add_batch(session, tenant), add_batch(session, tenant)
    row = answer(session, small, "21")
    answer(session, large, "21")
    session.execute(update(PlanRow).where(PlanRow.query_id == row.id).values(samples_max=1))

    groups = keys(session, By.BATCH)

    assert [groups[each.id].saving_ratio for each in (small, large)] == [1.0, 8.0]


def test_latency_is_from_start_to_end(session: Session, batch: Batch) -> None:
    for seconds in (1.0, 2.0, 3.0):
        answer(session, batch, "21", seconds=seconds)

    total = report(session).total

    assert total.latency_p50_s == pytest.approx(2.0)
    assert total.latency_p95_s == pytest.approx(2.9)


def test_the_estimates_error_is_relative_to_what_was_billed(session: Session, batch: Batch) -> None:
    answer(session, batch, "21")

    assert report(session).total.prompt_estimate_error == pytest.approx(0.2)  # 12 estimated, 10 billed


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (By.TENANT, {"acme", "other"}),
        (By.MODEL, {MODEL}),
        (By.STRATEGY, {"self_consistency"}),
        (By.TASK, {"sums", None}),
        (By.DAY, {"2026-03-14", "2026-03-15"}),
        (By.BATCH, {"first", "second", "interactive"}),
    ],
)
def test_groups_are_by_what_was_asked_and_add_up_to_the_total(
    session: Session, tenant: Tenant, by: By, expected: set[str | None]
) -> None:
    one, two = add_batch(session, tenant), add_batch(session, add_tenant(session, "other"))
    answer(session, one, "21", task="sums")
    answer(session, two, "21", at=NOW + timedelta(days=1))
    for _ in range(2):
        answer(session, add_batch(session, tenant, interactive=True), "21")

    made = report(session, by)

    names = {one.id: "first", two.id: "second"}
    assert {names.get(str(group.key), group.key) for group in made.groups} == expected
    assert sum(group.cost_nanousd for group in made.groups) == made.total.cost_nanousd == 4 * wave_nanousd(1)
    assert sum(group.queries for group in made.groups) == made.total.queries == 4
    assert all(group.latency_p50_s == pytest.approx(1.0) for group in made.groups)


def test_a_strategy_is_the_one_that_was_planned_last(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "21")
    plan = {column.key: getattr(session.query(PlanRow).one(), column.key) for column in PlanRow.__table__.columns}
    session.add(PlanRow(**{**plan, "id": None, "strategy": "direct", "query_id": row.id}))
    session.flush()

    assert set(keys(session, By.STRATEGY)) == {"direct"}


def test_a_line_that_never_ran_counts_under_what_it_asked_for(session: Session, batch: Batch) -> None:
    add_query(session, batch, state=QueryState.FAILED, model=None, finished_at=NOW)

    assert set(keys(session, By.MODEL)) == {None}
    assert set(keys(session, By.STRATEGY)) == {"auto"}


def test_money_counts_when_it_was_reserved_and_a_query_when_it_ended(session: Session, batch: Batch) -> None:
    answer(session, batch, "21", at=NOW, seconds=7200)
    between = NOW + timedelta(hours=1)

    before, after = (report(session, scope=scope).total for scope in (Scope(to=between), Scope(from_=between)))

    assert (before.cost_nanousd, before.queries) == (wave_nanousd(1), 0)
    assert (after.cost_nanousd, after.queries) == (0, 1)


def test_a_report_of_one_tenant_or_batch_leaves_the_others_out(session: Session, tenant: Tenant) -> None:
    one, two = add_batch(session, tenant), add_batch(session, tenant)
    for batch in (one, two, add_batch(session, add_tenant(session, "other"))):
        answer(session, batch, "21")

    of_tenant, of_batch = (
        report(session, scope=scope).total.queries
        for scope in (Scope(tenant_id=tenant.id), Scope(tenant_id=tenant.id, batch_id=one.id))
    )

    assert (of_tenant, of_batch) == (2, 1)


def test_the_caps_in_force_are_told(session: Session, tenant: Tenant, batch: Batch) -> None:
    answer(session, batch, "21")
    set_cap(session, tenant, limit_nanousd=10**6, period=Period.DAY, now=NOW)

    [cap] = report(session).caps

    assert cap.spent_nanousd == report(session).total.cost_nanousd


def test_a_cap_and_a_report_of_the_same_days_agree(session: Session, tenant: Tenant, batch: Batch) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0)
    answer(session, batch, "21", at=midnight - timedelta(seconds=1), seconds=10)
    answer(session, batch, "21", "22", at=midnight)
    cap = set_cap(session, tenant, limit_nanousd=10**6, period=Period.DAY, now=NOW)

    today = report(session, scope=Scope(from_=midnight, to=midnight + timedelta(days=1))).total

    assert today.cost_nanousd == cap.spent_nanousd == wave_nanousd(2)
