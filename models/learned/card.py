"""A model card: what a predictor was trained on, with what, and how it did on queries it had not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Self

import numpy as np

from models.learned.calibration import Scores, score
from models.learned.facts import Examples
from models.learned.predictor import DifficultyPredictor

LIBRARIES = ("numpy", "scikit-learn", "skops")
HELD_OUT = 0.25
"""The share of the queries that a card's scores are taken on; the predictor itself then learns from all of them."""
HELD_OUT_MIN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What is to be known of a predictor before it is promoted; without it, it is not.

    `window` says which data (first and last day, or the pools' names). `scores` are those of the held-out queries,
    `scores_without_probe` those of the same predictor without the probe, `scores_plain` those of one rate for all.
    """

    window: tuple[str, str]
    queries: int
    samples: int
    tasks: int
    probed: bool
    uses_features: bool
    versions: Mapping[str, str]
    held_out: int
    scores: Scores | None
    scores_without_probe: Scores | None
    scores_plain: Scores | None

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError where something is missing."""
        values = {name: told[name] for name in cls.__dataclass_fields__}
        for name in ("scores", "scores_without_probe", "scores_plain"):
            values[name] = None if values[name] is None else Scores(**values[name])
        first, last = values["window"]
        return cls(**{**values, "window": (first, last)})


def train(examples: Examples, *, window: tuple[str, str], seed: int = 0) -> tuple[DifficultyPredictor, Card]:
    """A predictor of all examples, and its card with scores of queries held out while they were taken."""
    predictor = DifficultyPredictor(seed=seed).fit(examples)
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = int(len(examples) * HELD_OUT)
    scores: dict[str, Scores | None] = dict.fromkeys(("with", "without", "plain"))
    if held_out >= HELD_OUT_MIN:
        taught, left = examples.take(order[held_out:]), examples.take(order[:held_out])
        for name, probed in (("with", True), ("without", False)):
            rates = DifficultyPredictor(with_probe=probed, seed=seed).fit(taught).beliefs(left.facts).rate
            scores[name] = score(rates, left.right, left.samples_max)
        rate = (taught.right.sum() + 0.5) / (taught.samples_max.sum() + 1)
        scores["plain"] = score(np.full(held_out, rate), left.right, left.samples_max)
    probed = predictor.featuriser_.with_probe
    card = Card(
        window=window,
        queries=len(examples),
        samples=int(examples.samples_max.sum()),
        tasks=len(predictor.featuriser_.tasks_),
        probed=probed,
        uses_features=predictor.uses_features_,
        versions={name: version(name) for name in LIBRARIES},
        held_out=held_out if scores["with"] else 0,
        scores=scores["with"],
        scores_without_probe=scores["without"] if probed else None,
        scores_plain=scores["plain"],
    )
    return predictor, card
