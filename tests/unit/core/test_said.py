"""What a sample shows beside its answer, and what its vote weighs by it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.said import FEATURES, LOG_WEIGHT_MAX, said, vote_weights
from scheduler.types import COUNTS_ONLY, Lessons

QUESTION = "Ann has 12 apples and 1,500 pears. How many more pears than apples?"


def shown(answer: str | None, *, tokens: int = 100, logprob: float | None = None, cut: bool = False) -> set[str]:
    """The names of the features that are not 0."""
    [row] = said(QUESTION, [answer], [tokens], [logprob], [cut])
    return {name for name, value in zip(FEATURES, row, strict=True) if value}


@pytest.mark.parametrize(
    ("answer", "features"),
    [
        ("1488", {"magnitude"}),
        ("-1488", {"magnitude", "negative", "below all of the question"}),
        ("1500", {"magnitude", "stands in the question"}),
        ("1,512", {"magnitude", "above all of the question"}),
        ("12.5", {"magnitude", "not whole"}),
        ("25/2", {"magnitude", "not whole"}),
        ("0", {"zero", "below all of the question"}),
        ("pears", {"not a number"}),
        ("1/0", {"not a number"}),
        ("9" * 400, {"not a number"}),
        (None, {"not a number"}),
    ],
)
def test_the_shape_of_an_answer_is_seen(answer: str | None, features: set[str]) -> None:
    assert shown(answer) == features


def test_length_sureness_and_being_cut_are_seen() -> None:
    assert shown("1488", tokens=200) == {"magnitude", "length"}
    assert shown("1488", logprob=-0.5) == {"magnitude", "log-probability"}
    assert shown("1488", cut=True) == {"magnitude", "cut"}


@given(
    st.text(max_size=60),
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.text(max_size=20)),
            st.integers(0, 10**6),
            st.one_of(st.none(), st.floats(allow_nan=True)),
            st.booleans(),
        )
    ),
)
def test_whatever_is_said_is_a_row_of_numbers_per_sample(
    question: str, samples: list[tuple[str | None, int, float | None, bool]]
) -> None:
    columns = [list(column) for column in zip(*samples, strict=True)] if samples else [[], [], [], []]
    rows = said(question, *columns)

    assert rows.shape == (len(samples), len(FEATURES))
    assert np.isfinite(rows).all()


def test_by_the_plain_rule_a_vote_weighs_its_samples_probability() -> None:
    rows = said("", ["1", "-2"], [10, 900], [-0.5, None], [False, True])

    assert vote_weights(COUNTS_ONLY, rows) == pytest.approx([math.exp(-0.5), 1.0])


def test_lessons_weigh_votes_by_what_samples_show_within_bounds() -> None:
    weights = [0.0] * len(FEATURES)
    weights[FEATURES.index("negative")] = -2.0
    weights[FEATURES.index("zero")] = 1000.0
    rows = said("", ["5", "-5", "0"], [10] * 3, [None] * 3, [False] * 3)

    assert vote_weights(Lessons(voting=tuple(weights)), rows) == pytest.approx(
        [1.0, math.exp(-2), math.exp(LOG_WEIGHT_MAX)]
    )
