"""What samples say beside what they answer: of which of them the shape, the length and the sureness speak for being
right.

Linear in what a sample shows, so that a few numbers hold it (`scheduler.types.Lessons.voting`): a worker needs no
fitted estimator, and the simulator weighs the same votes in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.types import Lessons

FEATURES = (
    "not a number",
    "negative",
    "not whole",
    "zero",
    "magnitude",
    "stands in the question",
    "above all of the question",
    "below all of the question",
    "length",
    "log-probability",
    "cut",
)
SHAPES = FEATURES.index("length")
"""How many of them are of the answer itself."""
PLAIN = tuple(float(name == "log-probability") for name in FEATURES)
"""A vote weighs the geometric mean of its sample's token probabilities: confidence-informed self-consistency (arXiv
2502.06233), with the response's own probability as the confidence. The rule that lessons have to beat."""
LENGTH_USUAL = 100.0
"""In tokens; any other would do, as only differences between samples of one query count."""
LOG_WEIGHT_MAX = 8.0
"""No vote counts e^8 times more or less than a usual one."""
LOGPROB_MIN = -20.0
"""A mean log-probability below this says no more."""
TEXT_MAX = 100_000
"""Characters of a question that are looked through for numbers."""

_NUMBER = re.compile(r"-?\d{1,15}(?:,\d{3})*(?:\.\d{1,15})?")
_PLAIN_NUMBER = re.compile(r"-?\d{1,300}(?:\.\d{1,300})?(?:/\d{1,300})?")


def said(
    question: str,
    answers: Sequence[str | None],
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    cut: Sequence[bool],
) -> Floats:
    """(N, FEATURES) what each of N samples of a query shows, each a feature of about unit size."""
    asked = [float(text.replace(",", "")) for text in _NUMBER.findall(question[:TEXT_MAX])]
    shapes: dict[str | None, tuple[float, ...]] = {}
    for answer in answers:
        if answer not in shapes:
            shapes[answer] = _shape(answer, asked)
    length = np.log(np.maximum(np.array(tokens, np.float64), 1.0) / LENGTH_USUAL)
    sure = np.array([0.0 if one is None or np.isnan(one) else one for one in logprobs], np.float64)
    sure = np.clip(sure, LOGPROB_MIN, 0.0)
    shape = np.array([shapes[answer] for answer in answers], np.float64).reshape(len(tokens), SHAPES)
    return np.column_stack([shape, length, sure, np.array(cut, np.float64)])


def vote_weights(lessons: Lessons, shown: Floats) -> Floats:
    """(...) what each sample's vote weighs, of (..., FEATURES) what it shows."""
    logs = np.clip(shown @ np.array(lessons.voting or PLAIN), -LOG_WEIGHT_MAX, LOG_WEIGHT_MAX)
    return np.asarray(np.exp(logs))


def _shape(answer: str | None, asked: Sequence[float]) -> tuple[float, ...]:
    value = _value(answer)
    if value is None:
        return (1.0, *[0.0] * (SHAPES - 1))
    return (
        0.0,
        float(value < 0),
        float(value != round(value)),
        float(value == 0),
        float(np.log10(1 + abs(value))),
        float(value in asked),
        float(bool(asked) and value > max(asked)),
        float(bool(asked) and value < min(asked)),
    )


def _value(answer: str | None) -> float | None:
    """The number that an answer is; None where it is none, or one beyond a double."""
    text = (answer or "").replace(",", "")
    if not _PLAIN_NUMBER.fullmatch(text):
        return None
    try:
        return float(Fraction(text))
    except (OverflowError, ZeroDivisionError, ValueError):
        return None
