"""Rules that share a budget out in advance, as the daemon plans with them: what each query of a window gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.drafts import Draft
from scheduler.learning import Past
from scheduler.peers import share_out
from scheduler.types import Arm, Verdict, VerifierSpec
from tests.unit.test_budgets import draft_of

RATES = (0.02, 0.1, 0.3, 0.6, 0.95)
JUDGED = VerifierSpec(kind=Verdict.NUMERIC, reference="4")
READ = VerifierSpec(kind=Verdict.NUMERIC)


def window(strategy: str, verifier: VerifierSpec | None = JUDGED) -> list[Draft]:
    """Five queries, from hopeless to easy, of eight samples at most."""
    drafts = [draft_of(number, rate, strategy=strategy) for number, rate in enumerate(RATES)]
    return [replace(draft, query=replace(draft.query, verifier=verifier)) for draft in drafts]


def counts(drafts: list[Draft], past: Past | None = None) -> list[int]:
    return [draft.plan.samples_max for draft in share_out(drafts, lambda _model: past)]


def past() -> Past:
    """A hundred earlier queries of each of the window's difficulties, which were as hard as believed."""
    rates = np.repeat(RATES, 100)
    drawn = np.full(len(rates), 8.0)
    right = np.random.default_rng(1).binomial(8, rates).astype(np.float64)
    return Past(
        alpha=20 * rates, beta=20 * (1 - rates), tokens_mean=np.full(len(rates), 100.0), right=right, judged=drawn
    )


def test_damanis_greedy_gives_nothing_more_to_the_hopeless_and_one_to_the_easy() -> None:
    shared = counts(window("damani@1.5"))

    assert shared[0] == 1
    assert max(shared) == max(shared[1:4])
    assert all(1 <= count <= 8 for count in shared)


def test_a_larger_budget_gives_no_query_less() -> None:
    scarce, ample = counts(window("damani@1.5")), counts(window("damani@4"))

    assert all(few <= many for few, many in zip(scarce, ample, strict=True))
    assert sum(scarce) < sum(ample)


def test_dsc_takes_the_share_that_looks_easiest_at_its_first_word() -> None:
    assert counts(window("dsc@0.4", READ)) == [8, 8, 8, 1, 1]


@pytest.mark.parametrize("name", ["snell", "damani-binned", "lagrangian"])
@pytest.mark.parametrize("verifier", [JUDGED, READ])
def test_rules_that_measure_on_earlier_queries_spend_their_budget_where_it_helped(
    name: str, verifier: VerifierSpec
) -> None:
    shared = counts(window(f"{name}@1.5", verifier), past())

    assert shared[0] < max(shared)
    assert shared != [8] * 5


def test_without_earlier_queries_their_limits_stay_as_they_are() -> None:
    assert counts(window("snell@1.5")) == [8] * 5


def test_a_query_that_is_planned_alone_is_not_taken_for_easy_because_nobody_is_harder() -> None:
    [alone] = share_out(window("dsc", READ)[:1], lambda _model: None)

    assert alone.plan.samples_max == 8


def test_samples_that_are_paid_for_are_looked_at_whatever_the_window_would_give() -> None:
    drafts = [replace(draft, drawn=5) for draft in window("damani@1.5")]

    assert min(counts(drafts)) == 5


def test_one_tenants_queries_take_nothing_from_anothers_share() -> None:
    mine, theirs = window("damani@2")[:3], [replace(draft, tenant_id="other") for draft in window("damani@2")[3:]]

    assert counts([*mine, *theirs]) == [*counts(mine), *counts(theirs)]


def test_windows_of_other_settings_models_and_strategies_are_shared_out_apart() -> None:
    greedy, other = window("damani@1.5"), window("damani@4")
    elsewhere = [
        replace(d, plan=replace(d.plan, arm=Arm(model="other", strategy="damani@1.5"))) for d in window("damani@1.5")
    ]

    mixed = counts([*greedy, *other, *elsewhere, *window("best_of_n")])

    assert mixed == [*counts(greedy), *counts(other), *counts(greedy), *[8] * 5]
