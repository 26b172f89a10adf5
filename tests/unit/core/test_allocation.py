"""Allocation spends a budget where it helps most, and says how far from the best it may be."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core import allocation
from scheduler.core.allocation import NOTHING, Reason, allocate, choices_at, in_words, reasons
from scheduler.core.beliefs import Floats
from scheduler.core.curves import best_of_n, tokens_until_accepted

ROUNDING = 1e-9


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[Floats, Floats, float]:
    queries, arms = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    cells = st.lists(st.integers(0, 20), min_size=queries * arms, max_size=queries * arms)
    gains = np.array(draw(cells), float).reshape(queries, arms) / 20
    costs = np.array(draw(cells), float).reshape(queries, arms)
    return gains, costs, float(draw(st.integers(0, 60)))


def best_gain(gains: Floats, costs: Floats, budget: float) -> float:
    """The optimum, by trying everything."""
    options = [[(0.0, 0.0), *zip(g, c, strict=True)] for g, c in zip(gains, costs, strict=True)]
    chosen = (np.array(choice).sum(axis=0) for choice in product(*options))
    return float(max(gain for gain, cost in chosen if cost <= budget + ROUNDING))


def expected(queries: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Curves of queries as they come: skewed rates, different lengths, up to 16 samples."""
    rng = np.random.default_rng(seed)
    alpha, beta = rng.gamma(1.0, 1.0, queries) + 0.05, rng.gamma(2.0, 1.0, queries) + 0.1
    tokens = rng.gamma(4.0, 50.0, queries) + 1
    gains, costs = best_of_n(alpha, beta, 16), tokens_until_accepted(alpha, beta, tokens, 16)
    return np.ascontiguousarray(gains[:, 1:]), np.ascontiguousarray(costs[:, 1:])


@settings(max_examples=80, deadline=None)
@given(small_cases())
def test_the_best_lies_within_the_bound_and_the_gap_within_one_step(
    case: tuple[Floats, Floats, float],
) -> None:
    gains, costs, budget = case

    found = allocate(gains, costs, budget)

    best = best_gain(gains, costs, budget)
    assert found.cost <= budget + ROUNDING
    assert found.gain <= best + ROUNDING
    assert best <= found.bound + ROUNDING
    assert found.gap <= gains.max() + ROUNDING


@settings(max_examples=60, deadline=None)
@given(small_cases(), st.integers(0, 30))
def test_more_budget_is_never_worse_and_never_dearer_at_the_margin(
    case: tuple[Floats, Floats, float], more: int
) -> None:
    gains, costs, budget = case

    less, richer = allocate(gains, costs, budget), allocate(gains, costs, budget + more)

    assert richer.gain >= less.gain - ROUNDING
    assert richer.price <= less.price + ROUNDING


def test_a_large_window_is_allocated_as_exactly_as_a_small_one() -> None:
    gains, costs = expected(3 * allocation.FEW)
    whole = costs[:, -1].sum()

    found = [allocate(gains, costs, part * whole) for part in (0.01, 0.1, 0.3, 0.9, 1.0, 2.0)]

    steps = np.diff(gains, axis=1, prepend=0.0).max()
    for each, part in zip(found, (0.01, 0.1, 0.3, 0.9, 1.0, 2.0), strict=True):
        assert each.cost <= part * whole * (1 + ROUNDING)
        assert each.gap <= steps + ROUNDING
    assert np.all(np.diff([each.gain for each in found]) >= 0)
    assert np.all(np.diff([each.price for each in found]) <= 0)
    assert found[-1].price == 0


def test_queries_that_look_the_same_share_a_budget() -> None:
    gains = np.tile(np.linspace(0.05, 0.8, 16), (4 * allocation.FEW, 1))
    costs = np.tile(np.arange(1.0, 17.0), (4 * allocation.FEW, 1))

    found = allocate(gains, costs, 0.3 * costs[:, -1].sum())

    assert 0.3 * costs[:, -1].sum() - found.cost < 1
    assert found.gap < 1e-4 * found.gain


def test_an_s_shaped_curve_is_paid_in_full_or_not_at_all() -> None:
    gains = np.array([[0.01, 0.02, 0.9], [0.3, 0.35, 0.36]])
    costs = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])

    assert allocate(gains, costs, 4.0).arms.tolist() == [2, 0]
    assert allocate(gains, costs, 2.0).arms.tolist() == [NOTHING, 1]


def test_a_dearer_model_is_chosen_where_it_is_the_cheaper_way_to_the_answer() -> None:
    small = np.array([[0.02, 0.04, 0.08], [0.6, 0.84, 0.97]])  # 1, 2, 4 samples of a small model
    large = np.array([[0.7], [0.9]])
    gains, costs = np.hstack([small, large]), np.tile([1.0, 2.0, 4.0, 6.0], (2, 1))

    assert choices_at(gains, costs, 0.1).tolist() == [3, 1]


def test_abandoned_queries_say_why() -> None:
    gains = np.array([[0.5], [0.0], [0.9], [0.01]])
    costs = np.array([[1.0], [1.0], [50.0], [5.0]])

    found = allocate(gains, costs, 5.0)

    assert found.arms.tolist() == [0, NOTHING, NOTHING, NOTHING]
    why = reasons(gains, costs, 5.0, found.arms).tolist()
    assert why == [Reason.FUNDED, Reason.HOPELESS, Reason.UNAFFORDABLE, Reason.TOO_DEAR]
    assert all(Reason(each).sentence for each in why)


def test_the_price_is_said_in_words() -> None:
    assert in_words(52.4) == "One more dollar buys about 52 more correct answers here."
    assert in_words(38_211.0) == "One more dollar buys about 38,000 more correct answers here."
    assert "nothing" in in_words(0.0)


def test_curves_are_expectations_over_what_is_not_known_of_a_rate() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 1.5, 200_000)

    curve = best_of_n(np.array([0.5]), np.array([1.5]), 8)[0]

    assert np.allclose(curve, [(1 - (1 - rates) ** n).mean() for n in range(9)], atol=0.003)
    assert np.all(np.diff(curve, 2) < 0), "each further sample helps less"
