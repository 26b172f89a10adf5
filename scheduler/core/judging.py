"""Whether one set of beliefs is better than another: log loss on counts, calibration, and an interval by bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints

RESAMPLES = 1000
BINS = 5
SURE = 1e-6
"""No belief is taken for surer than this."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """Beta beliefs about queries, and how many of their judged samples were right."""

    alpha: Floats
    beta: Floats
    right: Ints
    judged: Ints

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Queries of about the same predicted success rate: what was predicted of their samples, and what came."""

    predicted: float
    right: float
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """How much less one's log loss is than the other's, per query, with its 95% interval."""

    mean: float
    low: float
    high: float


def log_losses(beliefs: Judged) -> Floats:
    """-log of the chance that the beliefs gave to each query's sequence of right and wrong samples."""
    losses = np.zeros(len(beliefs))
    alpha, beta = np.maximum(beliefs.alpha, SURE), np.maximum(beliefs.beta, SURE)
    wrong = beliefs.judged - beliefs.right
    for k in range(int(beliefs.judged.max(initial=0))):
        losses -= np.where(k < beliefs.right, np.log(alpha + k), 0.0)
        losses -= np.where(k < wrong, np.log(beta + k), 0.0)
        losses += np.where(k < beliefs.judged, np.log(alpha + beta + k), 0.0)
    return losses


def loss_per_sample(beliefs: Judged) -> float:
    """The mean log loss per judged sample."""
    return float(log_losses(beliefs).sum() / max(1, int(beliefs.judged.sum())))


def gain_over(other: Judged, beliefs: Judged, seed: int = 0) -> Gain:
    """How much better `beliefs` are than those of `other` on the same queries."""
    difference = log_losses(other) - log_losses(beliefs)
    rows = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[rows].mean(axis=1), (0.025, 0.975))
    return Gain(mean=float(difference.mean()), low=float(low), high=float(high))


def brier(beliefs: Judged) -> float:
    """The mean squared error of the predicted success rate, over judged samples."""
    rate = beliefs.alpha / (beliefs.alpha + beliefs.beta)
    wrong = beliefs.judged - beliefs.right
    squares = beliefs.right * (1 - rate) ** 2 + wrong * rate**2
    return float(squares.sum() / max(1, int(beliefs.judged.sum())))


def reliability(beliefs: Judged) -> tuple[Bin, ...]:
    """What was predicted and what came, in bins of the predicted rate that hold about as many queries each.

    Only each query's first samples would be a fair draw where sampling stops at success; the expected share under the
    belief of the same stopped sequence is not its mean. Queries are therefore weighed alike: by their mean share.
    """
    rate = beliefs.alpha / (beliefs.alpha + beliefs.beta)
    return tuple(
        Bin(
            predicted=float(rate[rows].mean()),
            right=float((beliefs.right[rows] / beliefs.judged[rows]).mean()),
            samples=int(beliefs.judged[rows].sum()),
        )
        for rows in binned(rate)
    )


def binned(values: Floats, bins: int = BINS) -> list[NDArray[np.bool_]]:
    """The rows of each of up to so many bins of about as many values; equal values share one."""
    if not len(values):
        return []
    edges = np.quantile(values, np.arange(1, bins) / bins, method="lower")
    of = np.searchsorted(edges, values)
    return [of == each for each in np.unique(of)]
