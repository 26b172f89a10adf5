"""A forecast says what money would bring before any is spent."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.choices import Curves
from scheduler.core.arm_curves import arm_curves
from scheduler.forecast import Prospects, reaches


def prospects(*queries: tuple[float, float, int, bool]) -> Prospects:
    alpha, beta, limits, voted = (np.array(each) for each in zip(*queries, strict=True))
    prompt, sample = np.full(len(alpha), 300.0), np.full(len(alpha), 700.0)
    most = int(limits.max())
    gains, costs = arm_curves(alpha, beta, prompt, sample, voted=voted, samples_max=most)
    found = Prospects()
    found.add(Curves(gains=gains[:, 1:], costs=costs[:, 1:], menus=(None,) * len(queries)))
    return found


def test_more_money_reaches_more_and_buys_less_at_the_margin() -> None:
    batch = prospects(*[(1.0 + i % 5, 3.0, 16, False) for i in range(100)])

    little, more, plenty = reaches(batch, [20_000, 200_000, 10**9])

    assert little.right < more.right < plenty.right < 100
    assert little.abandoned > 0
    assert plenty.abandoned == 0
    assert plenty.used_nanousd < 10**9
    assert "nothing" in plenty.price
    assert "more correct answers" in little.price


def test_a_single_sample_is_right_as_often_as_predicted() -> None:
    [reach] = reaches(prospects((1.0, 3.0, 1, False), (3.0, 1.0, 1, False)), [10**9])

    assert reach.right == pytest.approx(1.0)
    assert reach.used_nanousd == 2_000


def test_lines_that_name_a_strategy_are_paid_whole_and_in_their_order() -> None:
    batch = Prospects()
    batch.add_named(np.array([0.2, 0.9, 0.5]), np.array([100.0, 100.0, 100.0]))

    little, plenty = reaches(batch, [150, 10**9])

    assert (little.right, little.used_nanousd, little.abandoned) == (0.2, 100, 2)
    assert "more correct answers" in little.price
    assert (plenty.right, plenty.used_nanousd, plenty.abandoned) == (1.6, 300, 0)
    assert "nothing" in plenty.price


def test_what_lines_that_name_a_strategy_leave_is_spent_where_it_helps_most() -> None:
    batch = prospects((1.0, 9.0, 1, False), (9.0, 1.0, 1, False))
    batch.add_named(np.array([0.5]), np.array([400.0]))

    [reach] = reaches(batch, [1_400])

    assert (reach.right, reach.used_nanousd, reach.abandoned) == (1.4, 1_400, 1)


def test_an_empty_batch_reaches_nothing() -> None:
    [reach] = reaches(Prospects(), [5])

    assert (reach.right, reach.used_nanousd) == (0.0, 0)
