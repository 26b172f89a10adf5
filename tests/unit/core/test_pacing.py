"""A paced price makes a cap last its period, and leaves little of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.pacing import PUSH_MAX, Pace, due, paced

WINDOWS, CAP = 288, 1_000_000_000
"""A day of five-minute windows."""


def spend_a_day(load: np.ndarray, first_price: float) -> np.ndarray:  # the load of each window, in queries
    """What each window spends when queries whose worth is above the price are bought, never past the cap."""
    rng = np.random.default_rng(0)
    pace, left, spent = Pace(price=first_price), CAP, []
    for window, queries in enumerate(load):
        costs = rng.gamma(2.0, 20_000.0, int(queries))
        worth = rng.beta(1.0, 2.0, int(queries)) / costs
        allowed = due(left, WINDOWS - window, 1)
        bought = costs[worth > pace.price]
        cost = int(bought[np.cumsum(bought) <= left].sum())
        pace, left = paced(pace, spent_nanousd=cost, due_nanousd=allowed), left - cost
        spent.append(cost)
    return np.array(spent)


@pytest.mark.parametrize("first_price", [1e-8, 8e-6, 1e-3])
def test_a_cap_lasts_the_day_and_is_spent_by_its_end(first_price: float) -> None:
    spent = spend_a_day(np.full(WINDOWS, 300), first_price)

    assert spent.sum() <= CAP
    assert spent.sum() > 0.97 * CAP
    last_quarter = spent[-WINDOWS // 4 :].sum()
    assert last_quarter == pytest.approx(CAP / 4, rel=0.15)


def test_a_load_that_comes_and_goes_still_uses_the_cap() -> None:
    load = 200 + 150 * np.sin(np.linspace(0, 4 * np.pi, WINDOWS))

    spent = spend_a_day(load, 8e-6)

    assert 0.95 * CAP < spent.sum() <= CAP


def test_too_little_work_makes_everything_worth_its_price() -> None:
    spent = spend_a_day(np.full(WINDOWS, 3), 8e-6)

    assert spent[WINDOWS // 2 :].mean() > 0.9 * 3 * 40_000 * 0.9


@given(
    price=st.floats(1e-12, 1.0),
    windows=st.integers(0, 10_000),
    spent=st.floats(0, 1e12),
    more=st.floats(0, 1e12),
    allowed=st.floats(0, 1e12),
)
def test_who_spends_more_pays_more(price: float, windows: int, spent: float, more: float, allowed: float) -> None:
    pace = Pace(price=price, windows=windows)

    less, dearer = (paced(pace, spent_nanousd=s, due_nanousd=allowed) for s in (spent, spent + more))

    assert dearer.price >= less.price
    assert np.exp(-PUSH_MAX) * 0.999 < less.price / price < np.exp(PUSH_MAX) * 1.001


def test_what_is_due_grows_with_what_is_left_and_ends_with_the_period() -> None:
    assert due(1000, seconds_left=100, window_s=10) == 100
    assert due(1000, seconds_left=5, window_s=10) == 1000
    assert due(-5, seconds_left=100, window_s=10) == 0
