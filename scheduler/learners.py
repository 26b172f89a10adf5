"""What is tried when a challenger is asked for, and how what they fitted comes back from its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scheduler.learned import TextLearner, TextPredictor
from scheduler.learning import GroupLearner, Learner
from scheduler.prediction import Predictor
from scheduler.priors import FrozenPriors

LEARNERS: tuple[Learner, ...] = (GroupLearner(), TextLearner())
"""The best of them on held-out queries is the challenger."""

_RESTORED: dict[str, Callable[[Mapping[str, Any]], Predictor]] = {
    FrozenPriors.kind: FrozenPriors.restored,
    TextPredictor.kind: TextPredictor.restored,
}


def restore(content: Mapping[str, Any]) -> Predictor:
    """The predictor that a file's content describes. Raises KeyError or ValueError where it is of no known kind."""
    kind = content["kind"]
    if kind not in _RESTORED:
        raise ValueError(f"a predictor of the kind {kind!r} is not known to this version of allotd")
    return _RESTORED[kind](content)
