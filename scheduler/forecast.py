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

TINY = 1e-9
"""In nano-dollars: what is free buys any amount."""


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
    """The queries of a batch, as far as a forecast needs them: a block of choices for each part of it.

    Those whose line names its strategy have no choice: their gains and costs stand apart, in their order.
    """

    _blocks: list[tuple[Floats, Floats]] = field(default_factory=list)
    _named: list[tuple[Floats, Floats]] = field(default_factory=list)

    def add_named(self, gains: Floats, costs: Floats) -> None:
        """More queries whose budgets are not allotd's to choose: all (Q,)."""
        self._named.append((gains, costs))

    @property
    def named(self) -> tuple[Floats, Floats]:
        """(Q,) what those gain and cost."""
        gains, costs = (np.concatenate([np.zeros(0), *(block[kind] for block in self._named)]) for kind in (0, 1))
        return gains, costs

    def add(self, curves: Curves) -> None:
        """More queries; of their choices only COUNTS and the last are kept, where those are numbers of samples."""
        most = curves.gains.shape[1]
        are_counts = all(menu is None for menu in curves.menus)
        counts = sorted({*(n for n in COUNTS if n < most), most}) if are_counts else range(1, most + 1)
        columns = np.array(counts) - 1
        self._blocks.append((curves.gains[:, columns], curves.costs[:, columns]))

    def together(self) -> tuple[Floats, Floats]:
        """(Q, A) what the choices of all others gain and cost."""
        if not self._blocks:
            return np.zeros((0, 1)), np.zeros((0, 1))
        width = max(gains.shape[1] for gains, _ in self._blocks)
        gains, costs = (np.concatenate([widened(block[kind], width) for block in self._blocks]) for kind in (0, 1))
        return gains, costs

    def __bool__(self) -> bool:
        return bool(self._blocks or self._named)


def reaches(prospects: Prospects, budgets_nanousd: Sequence[int]) -> tuple[Reach, ...]:
    """What each amount is expected to bring, spent where it helps most."""
    if not prospects:
        return tuple(Reach(budget_nanousd=b, right=0.0, used_nanousd=0, abandoned=0, price="") for b in budgets_nanousd)
    choices, named = prospects.together(), prospects.named
    return tuple(_reach(choices, named, budget) for budget in budgets_nanousd)


def _reach(choices: tuple[Floats, Floats], named: tuple[Floats, Floats], budget_nanousd: int) -> Reach:
    """Lines that name a strategy are paid first, in their order and as far as it goes: their budgets are no choice."""
    gains, costs = named
    paid = int(np.searchsorted(np.cumsum(costs), budget_nanousd, side="right"))
    spent = float(costs[:paid].sum())
    right, used, left_out, price = float(gains[:paid].sum()), spent, len(costs) - paid, 0.0
    if left_out:
        price = float(gains[paid] / max(costs[paid], TINY))
    if len(choices[0]):
        found = allocate(*choices, budget_nanousd - spent)
        right, used, price = right + found.gain, used + found.cost, max(price, found.price)
        left_out += int((found.arms == NOTHING).sum())
    return Reach(
        budget_nanousd=budget_nanousd,
        right=round(right, 1),
        used_nanousd=round(used),
        abandoned=left_out,
        price=in_words(price * NANOUSD_PER_USD),
    )
