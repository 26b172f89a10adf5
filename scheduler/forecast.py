"""What a batch would reach for a given amount of money, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.choices import Curves, widened
from scheduler.core.allocation import NOTHING, allocate, in_words
from scheduler.core.beliefs import Floats
from scheduler.core.pricing import NANOUSD_PER_USD

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
    """The queries of a batch, as far as a forecast needs them: a block of choices for each part of it."""

    _blocks: list[tuple[Floats, Floats]] = field(default_factory=list)

    def add(self, curves: Curves) -> None:
        """More queries; of their choices only COUNTS and the last are kept, where those are numbers of samples."""
        most = curves.gains.shape[1]
        are_counts = all(menu is None for menu in curves.menus)
        counts = sorted({*(n for n in COUNTS if n < most), most}) if are_counts else range(1, most + 1)
        columns = np.array(counts) - 1
        self._blocks.append((curves.gains[:, columns], curves.costs[:, columns]))

    def together(self) -> tuple[Floats, Floats]:
        """(Q, A) what the choices of all of them gain and cost; of one query at least."""
        width = max(gains.shape[1] for gains, _ in self._blocks)
        gains, costs = (np.concatenate([widened(block[kind], width) for block in self._blocks]) for kind in (0, 1))
        return gains, costs

    def __bool__(self) -> bool:
        return bool(self._blocks)


def reaches(prospects: Prospects, budgets_nanousd: Sequence[int]) -> tuple[Reach, ...]:
    """What each amount is expected to bring, spent where it helps most."""
    if not prospects:
        return tuple(Reach(budget_nanousd=b, right=0.0, used_nanousd=0, abandoned=0, price="") for b in budgets_nanousd)
    gains, costs = prospects.together()
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
