"""Several models are asked in the order that gains the most for what it costs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.cascade import Candidate, beliefs, cascade
from scheduler.core.curves import best_of_n

candidates = st.builds(
    Candidate,
    alpha=st.floats(0.1, 5.0),
    beta=st.floats(0.1, 5.0),
    cost=st.floats(1.0, 100.0),
    samples_max=st.integers(1, 3),
    failures=st.integers(0, 3),
)


def net(order: tuple[int, ...], asked: list[Candidate], price: float) -> float:
    """What asking in this order gains less what it costs, where one model says nothing of another."""
    failures = [candidate.failures for candidate in asked]
    reached, value = 1.0, 0.0
    for i in order:
        if failures[i] >= asked[i].samples_max:
            return value
        chance = asked[i].alpha / (asked[i].alpha + asked[i].beta + failures[i])
        value += reached * (chance - price * asked[i].cost)
        reached *= 1 - chance
        failures[i] += 1
    return value


@given(st.lists(candidates, min_size=1, max_size=2), st.floats(1e-4, 1.0))
def test_no_other_order_gains_more_where_models_fail_for_themselves(asked: list[Candidate], price: float) -> None:
    path = cascade(asked, alike=0.0)

    ours = max([0.0, *(path.gains - price * path.costs)])
    left = len(path.order)
    best = max(net(order, asked, price) for n in range(left + 1) for order in product(range(len(asked)), repeat=n))
    assert ours >= best - 1e-9


@given(st.lists(candidates, min_size=1, max_size=3))
def test_every_sample_that_may_be_drawn_is_and_gains_and_costs_more(asked: list[Candidate]) -> None:
    path = cascade(asked)

    drawn = [path.order.count(i) for i in range(len(asked))]
    assert drawn == [max(0, candidate.samples_max - candidate.failures) for candidate in asked]
    assert (np.diff(path.gains, prepend=0.0) >= 0).all()
    assert (np.diff(path.costs, prepend=0.0) >= 0).all()
    assert (path.gains <= 1).all()


@given(st.floats(0.1, 5.0), st.floats(0.1, 5.0))
def test_one_model_alone_gains_what_best_of_n_does(alpha: float, beta: float) -> None:
    path = cascade([Candidate(alpha=alpha, beta=beta, cost=7.0, samples_max=8)])

    assert path.gains == pytest.approx(best_of_n(np.array([alpha]), np.array([beta]), 8)[0, 1:])
    assert path.costs[0] == 7.0


def test_the_dear_model_is_asked_once_the_cheap_one_has_failed_often_enough() -> None:
    small = Candidate(alpha=1.0, beta=1.0, cost=1.0, samples_max=8)
    large = Candidate(alpha=4.0, beta=1.0, cost=4.0, samples_max=8)

    path = cascade([small, large])

    assert 0 < path.order.index(1) < 8


@given(candidates, candidates, st.integers(1, 10))
def test_failures_of_one_model_speak_against_the_other(one: Candidate, other: Candidate, failed: int) -> None:
    [before_one, before], [after_one, after] = beliefs([one, other], [0, 0]), beliefs([one, other], [failed, 0])

    assert after[0] / sum(after) < before[0] / sum(before)
    assert sum(after) == pytest.approx(sum(before))
    assert after_one == before_one  # its own failures are counted where its samples are looked at
