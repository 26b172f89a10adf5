"""A forecast says what money would bring before any is spent."""

from __future__ import annotations

import pytest

from scheduler.forecast import Prospects, reaches
from scheduler.types import Prediction


def prospects(*queries: tuple[float, float, int, bool]) -> Prospects:
    found = Prospects()
    for alpha, beta, samples_max, is_voted in queries:
        prediction = Prediction(alpha=alpha, beta=beta, tokens_p50=100, tokens_p90=200, version="test")
        found.add(prediction, prompt_nanousd=300, sample_nanousd=700, samples_max=samples_max, is_voted=is_voted)
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


def test_an_empty_batch_reaches_nothing() -> None:
    [reach] = reaches(Prospects(), [5])

    assert (reach.right, reach.used_nanousd) == (0.0, 0)
