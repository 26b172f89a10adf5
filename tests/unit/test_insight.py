"""What the report says of promises, the lot and prices."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest

from models.tables import PlanRow
from scheduler import pacing
from scheduler.core.periods import Period, period_bounds
from scheduler.insight import calibration, insight, policy_value
from scheduler.pacing import Move
from scheduler.priors import PLAIN
from scheduler.reports import Scope
from tests.factories import MODEL, NOW, add_batch, add_cap, add_query, add_tenant, new_sessions


def test_promises_are_compared_with_what_came() -> None:
    pairs = [(0.9, True)] * 9 + [(0.9, False)] + [(0.2, True)] * 2 + [(0.2, False)] * 8

    found = calibration(pairs)

    assert [one.queries for one in found] == [10, 10]  # equal promises are judged together
    assert [one.promised for one in found] == pytest.approx([0.2, 0.9])
    assert [one.right for one in found] == pytest.approx([0.2, 0.9])
    assert calibration([]) == ()


def test_rare_lots_count_for_those_they_stand_for() -> None:
    rows = [
        SimpleNamespace(correct=True, propensity=0.1, spent_nanousd=100),
        SimpleNamespace(correct=False, propensity=0.9, spent_nanousd=200),
        SimpleNamespace(correct=None, propensity=0.9, spent_nanousd=200),
    ]

    value = policy_value("explore", rows)

    assert (value.queries, value.labelled) == (3, 2)
    assert value.accuracy == pytest.approx(10 / (10 + 1 / 0.9))
    assert value.cost_nanousd == pytest.approx((1000 + 2 * 200 / 0.9) / (10 + 2 / 0.9))
    assert policy_value("explore", []).accuracy is None


def test_a_scopes_insight_has_its_plans_and_the_prices_of_the_present_period() -> None:
    with new_sessions() as sessions, sessions() as session:
        tenant = add_tenant(session)
        day, total = add_cap(session, tenant, 1000, period="day"), add_cap(session, tenant, 1000)
        starts_at, _ = period_bounds(Period.DAY, NOW, "UTC")
        query = add_query(
            session, add_batch(session, tenant), state="answered", correct=True, samples_drawn=2, finished_at=NOW
        )
        session.add(
            PlanRow(
                query_id=query.id, model=MODEL, strategy="best_of_n", samples_max=2, tokens_max=8, alpha=1.0, beta=1.0,
                tokens_p50=8, tokens_p90=8, predictor_version=PLAIN, policy="allotd", propensity=0.98, gain=0.7,
                created_at=NOW,
            )
        )  # fmt: skip
        moves = [
            Move(scope=day.id, tenant_id=tenant.id, starts_at=starts_at, price=2e-9),
            Move(scope=day.id, tenant_id=tenant.id, starts_at=starts_at - timedelta(days=1), price=5e-9),
            Move(scope=total.id, tenant_id=tenant.id, starts_at=period_bounds(Period.TOTAL, NOW, "UTC")[0], price=0.0),
        ]
        pacing.remember(session, moves, NOW)

        found = insight(session, Scope(tenant_id=tenant.id), NOW)
        elsewhere = insight(session, Scope(tenant_id="another"), NOW)

    assert [(one.right_per_usd, one.sentence) for one in found.prices] == [
        (pytest.approx(2.0), "One more dollar buys about 2 more correct answers here."),
        (0.0, "One more dollar would buy nothing here: every query has all it can use."),
    ]
    assert [one.queries for one in found.calibration] == [1]
    assert found.predictor_version == PLAIN
    assert [(one.policy, one.queries) for one in found.policies] == [("allotd", 1), ("explore", 0)]
    assert (elsewhere.prices, elsewhere.calibration) == ((), ())
