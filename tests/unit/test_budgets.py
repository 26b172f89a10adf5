"""How much each query of a window gets, at which price, and who is given nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import Attempt, Pace, PlanRow, QueryRow
from scheduler import pacing
from scheduler.budgets import (
    ALLOTTED,
    EXPLORE,
    FIXED,
    STRAY,
    Allotted,
    allot_window,
    budgeted,
    lot,
    price_of,
    with_policy,
)
from scheduler.choices import Curves, curves_of
from scheduler.core.pacing import Pace as CorePace
from scheduler.core.pricing import Price
from scheduler.drafts import Draft, draft_plans
from scheduler.pacing import Asking, Move, Purse, purses
from scheduler.planning import fund_window
from scheduler.prediction import FixedPriors
from scheduler.settings import Settings
from scheduler.states import AttemptState, QueryState
from scheduler.types import Arm, Plan, Prediction, Query
from tests.factories import MODEL, NOW, add_batch, add_cap, add_query, add_tenant, add_worker, fund, new_sessions

SETTINGS = Settings(explore_share=0.0)
PRICE = Price(id=1, model=MODEL, prompt_nanousd=1, cached_nanousd=1, completion_nanousd=2)
JUDGED = {"verifier": "numeric", "reference": "21"}
SAMPLE_NANOUSD = 40 + 2 * 100


class Believes:
    """Believes what it is told of each query, in order."""

    version = "told"

    def __init__(self, rates: Sequence[float], concentration: float = 20.0) -> None:
        self.rates, self.concentration = rates, concentration

    def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
        return [believed(rate, self.concentration) for rate, _ in zip(self.rates, queries, strict=True)]


def believed(rate: float, concentration: float = 20.0) -> Prediction:
    return Prediction(
        alpha=rate * concentration,
        beta=(1 - rate) * concentration,
        tokens_p50=100,
        tokens_p90=200,
        tokens_mean=100.0,
        version="told",
    )


def draft_of(number: int, rate: float, samples_max: int = 8, strategy: str = "best_of_n") -> Draft:
    query = Query(id=number, model=MODEL, messages=(), prompt_tokens=40, prompt_tokens_max=44)
    plan = Plan(
        query_id=number,
        arm=Arm(model=MODEL, strategy=strategy),
        samples_max=samples_max,
        tokens_max=256,
        ceiling_nanousd=None,
    )
    return Draft(
        query=query,
        tenant_id="t",
        batch_id="b",
        plan=plan,
        prediction=believed(rate),
        price=PRICE,
        is_auto=True,
        policy=ALLOTTED,
    )


def purse_of(drafts: Sequence[Draft], left: float, coming: int | None = None, price: float | None = None) -> Purse:
    return Purse(
        scope="cap",
        tenant_id="t",
        starts_at=NOW,
        left_nanousd=int(left),
        query_ids=frozenset(draft.query.id for draft in drafts),
        coming=coming or len(drafts),
        pace=None if price is None else CorePace(price=price, windows=1),
    )


def planned(drafts: Sequence[Draft], left: float, *, may_abandon: bool = True) -> list[Draft]:
    """The drafts with what the first window of a budget gives them."""
    curves = curves_of(drafts)
    price = price_of(purse_of(drafts, left), drafts, curves, curves.costs[:, -1])
    return [budgeted(draft, row_of(curves, i), price, may_abandon=may_abandon) for i, draft in enumerate(drafts)]


def row_of(curves: Curves, row: int) -> Curves:
    return curves.take(np.array([row]))


rates = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12)


@given(seed=st.integers(0, 10_000), left=st.integers(300, 40_000))
def test_a_window_is_expected_to_cost_no_more_than_its_part_single_samples_at_the_margin_included(
    seed: int, left: int
) -> None:
    dice = random.Random(seed)
    drafts = [draft_of(number, dice.betavariate(1, 1)) for number in range(12)]

    cost = sum(draft.cost_nanousd or 0.0 for draft in planned(drafts, left))

    assert cost <= left * (1 + 1e-9)


@settings(max_examples=30)
@given(rates=rates, dollars=st.floats(1.0, 60_000.0))
def test_what_a_window_is_expected_to_cost_stays_within_its_part_of_the_budget_but_for_single_samples(
    rates: list[float], dollars: float
) -> None:
    drafts = plans_of(rates)

    plans = planned(drafts, dollars)

    dear = sum(draft.cost_nanousd or 0.0 for draft in plans if draft.plan.samples_max > 1)
    full = sum(float(costs[-1]) for costs in curves_of(drafts).costs)
    assert dear <= int(dollars) * (1 + 1e-9) or full <= int(dollars)
    assert (plans[0].plan.price == 0) == (full <= int(dollars))


@settings(max_examples=30)
@given(rates=rates, dollars=st.floats(1.0, 60_000.0), more=st.floats(1.0, 10.0))
def test_more_budget_never_means_a_higher_price_or_fewer_expected_answers(
    rates: list[float], dollars: float, more: float
) -> None:
    drafts = plans_of(rates)

    few, many = (planned(drafts, budget, may_abandon=False) for budget in (dollars, dollars * more))

    assert many[0].plan.price <= few[0].plan.price
    assert sum(d.gain or 0 for d in many) >= sum(d.gain or 0 for d in few) - 1e-9


@settings(max_examples=30)
@given(rates=rates, dollars=st.floats(1.0, 60_000.0))
def test_nobody_is_given_nothing_without_a_reason_and_a_binding_budget(rates: list[float], dollars: float) -> None:
    drafts = plans_of(rates)

    for draft in planned(drafts, dollars):
        assert draft.plan.samples_max >= 1
        if draft.abandoned_because is not None:
            assert draft.plan.price > 0
            assert "elsewhere" in draft.abandoned_because
    assert all(draft.abandoned_because is None for draft in planned(drafts, dollars, may_abandon=False))


def plans_of(rates: Sequence[float]) -> list[Draft]:
    return [draft_of(i, rate) for i, rate in enumerate(rates)]


def test_a_scarce_budget_goes_where_a_sample_helps_most() -> None:
    hopeless, unlikely, likely = planned(plans_of([0.001, 0.1, 0.5]), 3 * SAMPLE_NANOUSD)

    assert hopeless.abandoned_because is not None
    assert likely.abandoned_because is None
    assert likely.plan.samples_max > unlikely.plan.samples_max


@pytest.mark.parametrize("strategy", ["best_of_n", "self_consistency", "uniform"])
def test_samples_of_one_wave_share_their_prompt(strategy: str) -> None:
    long = replace(draft_of(1, 0.1, strategy=strategy), price=replace(PRICE, prompt_nanousd=1_000))

    [costs] = curves_of([long]).costs

    assert costs[0] == pytest.approx(40_000 + 200)
    assert costs[1] == pytest.approx(40_000 + 400)


def test_votes_are_priced_too_and_a_hopeless_vote_is_not_extended() -> None:
    drafts = [draft_of(i, rate, strategy="self_consistency") for i, rate in enumerate((0.05, 0.6))]

    scattered, likely = planned(drafts, 8 * SAMPLE_NANOUSD, may_abandon=False)

    assert scattered.plan.samples_max < likely.plan.samples_max


@settings(max_examples=30)
@given(rates=rates, dollars=st.floats(300.0, 60_000.0), before=st.floats(1e-9, 1.0))
def test_a_price_moves_with_spending_and_never_strays_far_from_what_the_window_asks_for(
    rates: list[float], dollars: float, before: float
) -> None:
    drafts = plans_of(rates)
    curves = curves_of(drafts)
    full = curves.costs[:, -1]

    exact = price_of(purse_of(drafts, dollars), drafts, curves, full)
    moved = price_of(purse_of(drafts, dollars, price=before), drafts, curves, full)

    assert exact / STRAY * (1 - 1e-9) <= moved <= exact * STRAY * (1 + 1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 50), left=st.integers(500, 20_000))
def test_a_budget_that_many_windows_share_is_nearly_used_up_and_not_passed_in_expectation(seed: int, left: int) -> None:
    dice = random.Random(seed)
    windows = [[draft_of(i, dice.betavariate(1, 1)) for i in range(8)] for _ in range(12)]
    spent, price, remaining = 0.0, None, 96
    full = 0.0
    for drafts in windows:
        curves = curves_of(drafts)
        full += float(curves.costs[:, -1].sum())
        purse = purse_of(drafts, left * 10 - spent, coming=remaining, price=price)
        price = price_of(purse, drafts, curves, curves.costs[:, -1])
        plans = [budgeted(d, row_of(curves, i), price, may_abandon=True) for i, d in enumerate(drafts)]
        spent += sum(d.cost_nanousd or 0.0 for d in plans)
        remaining -= len(drafts)

    assert spent <= left * 10 * 1.35 + 8 * SAMPLE_NANOUSD
    assert spent >= min(full, left * 10) * 0.5


def test_the_lot_is_a_querys_own_and_falls_as_often_as_it_is_told() -> None:
    explored = [with_policy(draft_of(i, 0.5), 0.1).policy == EXPLORE for i in range(4000)]

    assert 300 < sum(explored) < 500
    assert explored == [lot(i) < 0.1 for i in range(4000)]
    assert with_policy(draft_of(3, 0.5), 1.0).propensity == 1.0


def test_what_the_request_asks_for_by_name_is_neither_priced_nor_explored() -> None:
    named = with_policy(replace(draft_of(1, 0.5), is_auto=False), 1.0)
    single = with_policy(draft_of(2, 0.5, samples_max=1), 1.0)

    assert (named.policy, single.policy) == (FIXED, FIXED)
    curves = curves_of([named])
    assert budgeted(named, curves, 1.0, may_abandon=True).plan == replace(
        named.plan, alpha=10.0, beta=10.0, prompt_nanousd=40.0, sample_nanousd=200.0
    )


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        add_worker(session, capacity=64)
        yield session


def allotted(
    session: Session, rows: Sequence[QueryRow], predictor: Any, settings: Settings = SETTINGS, now: datetime = NOW
) -> Allotted:
    drafts = draft_plans(session, rows, predictor, settings, now)
    window = allot_window(session, drafts, settings, now, may_abandon=True)
    pacing.remember(session, window.moves, now)
    return window


def test_without_a_cap_that_binds_plans_are_the_plain_ones(session: Session) -> None:
    tenant = add_tenant(session)
    add_cap(session, tenant, 10**9)
    rows = [add_query(session, add_batch(session, tenant), **JUDGED) for _ in range(3)]

    window = allotted(session, rows, FixedPriors())

    assert {(d.plan.samples_max, d.plan.price) for d in window.drafts} == {(SETTINGS.samples_max, 0.0)}
    assert window.moves == []


def test_a_tight_cap_lowers_budgets_and_its_price_survives_a_restart(session: Session) -> None:
    tenant = add_tenant(session)
    cap = add_cap(session, tenant, 1500, period="day")
    batch = add_batch(session, tenant)
    rows = [add_query(session, batch, **JUDGED) for _ in range(4)]

    first = allotted(session, rows, Believes([0.1, 0.3, 0.5, 0.9]))

    [pace] = session.scalars(select(Pace))
    assert (pace.scope, pace.tenant_id, pace.windows) == (cap.id, tenant.id, 1)
    assert pace.price == first.drafts[0].plan.price > 0
    assert len({d.plan.samples_max for d in first.drafts}) > 1
    allotted(session, rows, Believes([0.1, 0.3, 0.5, 0.9]))
    session.refresh(pace)
    assert pace.windows == 2
    allotted(session, rows, Believes([0.1, 0.3, 0.5, 0.9]), now=NOW + timedelta(days=1))
    assert len(session.scalars(select(Pace)).all()) == 2


def test_a_batchs_own_limit_is_a_budget_as_well(session: Session) -> None:
    tight = add_batch(session, add_tenant(session), limit_nanousd=500)
    roomy = add_batch(session, add_tenant(session, "other"))
    rows = [add_query(session, batch, **JUDGED) for batch in (tight, tight, roomy)]

    drafts = allotted(session, rows, Believes([0.5, 0.5, 0.5])).drafts

    assert [draft.plan.price > 0 for draft in drafts] == [True, True, False]


def test_what_came_yesterday_from_now_on_is_saved_for(session: Session) -> None:
    def price_after(came: int) -> float:
        tenant = add_tenant(session, f"t{came}")
        add_cap(session, tenant, 6000, period="day")
        if came:
            earlier = add_batch(session, tenant, lines_read=came, state="completed")
            earlier.created_at = NOW - timedelta(hours=22)
            session.flush()
        query = add_query(session, add_batch(session, tenant), **JUDGED)
        return allotted(session, [query], Believes([0.3])).drafts[0].plan.price

    assert price_after(0) == 0.0
    assert price_after(100) > 0.0


def test_an_abandoned_query_ends_with_its_reason_and_keeps_its_plan(session: Session) -> None:
    tenant = add_tenant(session)
    add_cap(session, tenant, 700)
    batch = add_batch(session, tenant)
    rows = [add_query(session, batch, **JUDGED) for _ in range(4)]

    window = allotted(session, rows, Believes([0.001, 0.5, 0.5, 0.5]))
    fund_window(session, window.drafts, NOW)

    session.refresh(rows[0])
    assert rows[0].state == QueryState.ABANDONED
    assert "chance of 0.10%" in (rows[0].because or "")
    assert rows[0].finished_at == NOW
    plan = session.scalars(select(PlanRow).where(PlanRow.query_id == rows[0].id)).one()
    assert (plan.samples_max, plan.propensity, plan.predictor_version) == (0, 1.0, "told")
    assert plan.price > 0


def test_a_query_that_was_paid_for_or_that_a_client_waits_for_is_not_abandoned(session: Session) -> None:
    tenant = add_tenant(session)
    add_cap(session, tenant, 700)
    batch, chat = add_batch(session, tenant), add_batch(session, tenant, interactive=True)
    begun = add_query(session, batch, samples_drawn=1, **JUDGED)
    rows = [begun, add_query(session, chat, **JUDGED), *(add_query(session, batch, **JUDGED) for _ in range(3))]

    drafts = allotted(session, rows, Believes([0.001, 0.001, 0.5, 0.5, 0.5])).drafts

    assert [draft.abandoned_because for draft in drafts[:2]] == [None, None]
    assert [draft.plan.samples_max for draft in drafts[:2]] == [1, 1]


def test_of_planned_queries_a_budget_owes_what_they_are_expected_to_cost_and_not_what_waves_hold(
    session: Session,
) -> None:
    tenant = add_tenant(session)
    cap = add_cap(session, tenant, 10**9)
    batch = add_batch(session, tenant, limit_nanousd=5_000)
    planned = add_query(session, batch, **JUDGED)
    funded = fund(session, planned)
    session.execute(update(PlanRow).values(cost_nanousd=1_200.0))
    planned.spent_nanousd, batch.held_nanousd = 200, 4_000
    session.flush()

    asking = [Asking(query_id=0, tenant_id=tenant.id, batch_id=batch.id, model=MODEL)]
    left = {purse.scope: purse.left_nanousd for purse in purses(session, asking, 100.0, NOW)}

    assert left == {cap.id: 10**9 - 1_000, batch.id: 5_000 - 1_000}
    session.execute(update(Attempt).where(Attempt.id == funded.attempt_id).values(state=AttemptState.FINISHED))
    assert [purse.left_nanousd for purse in purses(session, asking, 100.0, NOW)] == [10**9, 5_000]


def test_a_cap_on_one_model_owes_nothing_of_what_several_models_may_cost(session: Session) -> None:
    tenant = add_tenant(session)
    caps = [add_cap(session, tenant, 10**9), add_cap(session, tenant, 10**9, model=MODEL)]
    query = add_query(session, add_batch(session, tenant), models_json=f'["{MODEL}", "other"]', **JUDGED)
    fund(session, query)
    session.execute(update(PlanRow).values(cost_nanousd=1_200.0, escalates=True))
    query.spent_nanousd = 500  # on what was asked before: further costs are told alone
    session.flush()

    asking = [Asking(query_id=0, tenant_id=tenant.id, batch_id=query.batch_id, model=MODEL)]
    left = {purse.scope: purse.left_nanousd for purse in purses(session, asking, 100.0, NOW)}

    assert left == {caps[0].id: 10**9 - 1_200, caps[1].id: 10**9}


def test_plans_say_what_they_were_drawn_from(session: Session) -> None:
    rows = [add_query(session, add_batch(session, add_tenant(session)), **JUDGED)]

    fund_window(session, allotted(session, rows, Believes([0.5]), Settings(explore_share=1.0)).drafts, NOW)

    plan = session.scalars(select(PlanRow)).one()
    assert (plan.policy, plan.propensity, plan.explored) == ("explore", 1.0, True)
    assert (plan.price, plan.predictor_version) == (0.0, "told")
    assert plan.gain is not None
    assert 0.9 < plan.gain < 1.0
    assert plan.sample_nanousd > 0


def test_moves_are_remembered_on_the_same_row(session: Session) -> None:
    tenant = add_tenant(session)
    for price in (1.0, 2.0):
        pacing.remember(session, [Move(scope="cap_1", tenant_id=tenant.id, starts_at=NOW, price=price)], NOW)

    assert session.execute(select(Pace.price, Pace.windows)).all() == [(2.0, 2)]
