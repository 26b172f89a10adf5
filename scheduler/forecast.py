"""What a batch would reach for a given amount of money, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.core.allocation import NOTHING, allocate, in_words
from scheduler.core.arm_curves import arm_curves
from scheduler.core.beliefs import Floats
from scheduler.core.pricing import NANOUSD_PER_USD
from scheduler.types import Prediction

COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Samples that are weighed against each other; what lies between them changes a forecast by less than it errs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """What one amount of money is expected to bring: right answers, money used, queries left out."""

    budget_nanousd: int
    right: float
    used_nanousd: int
    abandoned: int
    price: str


@dataclass(slots=True)
class Prospects:
    """The queries of a batch, as far as a forecast needs them."""

    alpha: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    prompt_nanousd: list[float] = field(default_factory=list)
    sample_nanousd: list[float] = field(default_factory=list)
    samples_max: list[int] = field(default_factory=list)
    is_voted: list[bool] = field(default_factory=list)

    def add(
        self, prediction: Prediction, *, prompt_nanousd: float, sample_nanousd: float, samples_max: int, is_voted: bool
    ) -> None:
        """One more query."""
        self.alpha.append(prediction.alpha)
        self.beta.append(prediction.beta)
        self.prompt_nanousd.append(float(prompt_nanousd))
        self.sample_nanousd.append(float(sample_nanousd))
        self.samples_max.append(samples_max)
        self.is_voted.append(is_voted)


def reaches(prospects: Prospects, budgets_nanousd: Sequence[int]) -> tuple[Reach, ...]:
    """What each amount is expected to bring, spent where it helps most."""
    if not prospects.alpha:
        return tuple(Reach(budget_nanousd=b, right=0.0, used_nanousd=0, abandoned=0, price="") for b in budgets_nanousd)
    gains, costs = _arms(prospects)
    return tuple(_reach(gains, costs, budget) for budget in budgets_nanousd)


def _reach(gains: Floats, costs: Floats, budget_nanousd: int) -> Reach:
    found = allocate(gains, costs, float(budget_nanousd))
    return Reach(
        budget_nanousd=budget_nanousd,
        right=round(found.gain, 1),
        used_nanousd=round(found.cost),
        abandoned=int((found.arms == NOTHING).sum()),
        price=in_words(found.price * NANOUSD_PER_USD),
    )


def _arms(prospects: Prospects) -> tuple[Floats, Floats]:
    """(Q, A) the chance of a right answer and the expected cost of each number of samples."""
    alpha, beta = np.array(prospects.alpha), np.array(prospects.beta)
    prompt, sample = np.array(prospects.prompt_nanousd), np.array(prospects.sample_nanousd)
    limits, voted = np.array(prospects.samples_max), np.array(prospects.is_voted)
    counts = [n for n in COUNTS if n <= limits.max()] + ([int(limits.max())] if limits.max() not in COUNTS else [])
    most = max(counts)
    gains, costs = arm_curves(alpha, beta, prompt, sample, voted=voted, samples_max=most)
    allowed = np.array(counts) <= limits[:, None]
    return np.where(allowed, gains[:, counts], 0.0), np.ascontiguousarray(costs[:, counts])
