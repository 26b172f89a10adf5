"""Turns what is known of queries into numbers: one featuriser for fit and predict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA

from models.learned.embedding import embed
from models.learned.facts import Facts

Floats = NDArray[np.float64]

NUMBER = re.compile(r"\d+(?:\.\d+)?")
CHARACTERS_MAX = 20_000
"""Of a longer prompt only the end is looked at: that is where the question stands."""
TASK_WEIGHT = 0.5
"""How far apart queries of two tasks are, where all other features of a query are about 1 long."""
NO_TASK = ""
COMPONENTS = 96
"""Principal components of a probe's vector: 97 % of the spread of a 0.5B model's hidden states on the recorded pools;
with a third or twice as many, rates were predicted no better."""


class Featuriser(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Blocks of features, each scaled to a length of about 1, so that none outweighs the others by its size.

    The probe's vector is turned to its principal components, which keep half of their spread (on a log scale): whitened
    ones were worse on the recorded pools, and so were raw ones.
    """

    def __init__(self, *, with_probe: bool = True, with_embedding: bool = False) -> None:
        self.with_probe = with_probe
        self.with_embedding = with_embedding

    def fit(self, facts: Sequence[Facts], _y: Any = None) -> Self:
        """Learn centres, scales and the tasks there are."""
        self.tasks_ = sorted({fact.task or NO_TASK for fact in facts})
        if self.with_probe:
            vectors = np.repeat(_vectors(facts), 2 if len(facts) == 1 else 1, axis=0)  # of one there is no spread
            with np.errstate(invalid="ignore"):  # the share of a spread that is none
                self.components_ = PCA(min(COMPONENTS, *vectors.shape), random_state=0).fit(vectors)
        blocks = self._blocks(facts)
        self.centres_ = {name: block.mean(axis=0) for name, block in blocks.items()}
        self.scales_ = {name: _scales(name, block) for name, block in blocks.items()}
        return self

    def transform(self, facts: Sequence[Facts]) -> Floats:
        """One row per query."""
        scaled = [
            np.clip((block - self.centres_[name]) / self.scales_[name], -OUTLIER, OUTLIER)
            for name, block in self._blocks(facts).items()
        ]
        tasks = np.array([[(fact.task or NO_TASK) == task for task in self.tasks_] for fact in facts], np.float64)
        return np.hstack([*scaled, TASK_WEIGHT * tasks.reshape(len(facts), len(self.tasks_))])

    def _blocks(self, facts: Sequence[Facts]) -> dict[str, Floats]:
        blocks = {"counts": np.array([_counts(fact) for fact in facts], np.float64)}
        if self.with_embedding:
            blocks["embedding"] = embed([fact.text[-CHARACTERS_MAX:] for fact in facts])
        if self.with_probe:
            blocks["probe"] = self.components_.transform(_vectors(facts))
        return blocks


def _vectors(facts: Sequence[Facts]) -> Floats:
    probes = [fact.probe for fact in facts if fact.probe is not None]
    assert len(probes) == len(facts), "queries without a probe have a predictor of their own"
    return np.array(probes, np.float64)


OUTLIER = 3.0
"""No feature of a query is further out than this; the widest of a thousand ordinary ones is about 1."""


def _scales(name: str, block: Floats) -> Floats:
    spread = block.std(axis=0) + 1e-9
    if name == "probe":
        root = np.sqrt(spread)
        return np.asarray(root * np.sqrt(((block - block.mean(axis=0)) ** 2 / root**2).sum(axis=1).mean()) + 1e-9)
    # a column that never varied says nothing: it must not speak up when it does
    return np.asarray(np.where(spread > 1e-6, spread, np.inf) * np.sqrt(block.shape[1]))


def _counts(fact: Facts) -> list[float]:
    """Sizes, numbers, operators and structure of the text; logarithms, as all of them are skewed."""
    text = fact.text[-CHARACTERS_MAX:]
    words = text.split()
    numbers = NUMBER.findall(text.replace(",", ""))
    lengths = [len(number) for number in numbers] or [0]
    largest = max((float(number[:15]) for number in numbers), default=0.0)
    raw = [
        fact.prompt_tokens,
        len(text),
        len(words),
        len(numbers),
        max(lengths),
        sum(lengths),
        sum(lengths) / len(lengths),
        np.log1p(largest),
        *(text.count(sign) for sign in "+-/(=\n,?"),
        text.count("*") + text.count("\u00d7"),
        sum(character.isupper() for character in text),
        len({word.lower() for word in words}) / max(1, len(words)),
        max((len(word) for word in words), default=0),
    ]
    return [float(np.log1p(value)) for value in raw]
