"""The lines nobody can pass: what an allocator could do that knew what will happen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Bools, Ints, Seen
from scheduler.core.policies.base import BOTH, Mode, Setting, Workload, rows_like
from scheduler.core.policies.binned import counts_for, within_limits
from scheduler.core.policies.uniform import FixedCount

PRICES_MAX = 100
"""Points of a frontier at most."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnownRates:
    """Goes on until one is accepted where the true `worth` (Q,) of a sample is above the price."""

    worth: Floats
    samples_max: Ints
    price: float

    def more(self, seen: Seen) -> Ints:
        """One sample, where the true rate is worth it."""
        goes_on = (rows_like(self.worth, seen) > self.price) & (seen.accepted == 0)
        return np.asarray(goes_on & (seen.drawn < rows_like(self.samples_max, seen)), np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Foreseen:
    """Draws `needed` samples, up to the first column where it would be right, where that is worth its tokens."""

    needed: Ints

    def more(self, seen: Seen) -> Ints:
        """All of them at once."""
        return np.asarray(np.maximum(self.needed[..., None] - seen.drawn, 0))


class Oracle:
    """Knows the true rates, not the draws.

    With a verifier: each query's rate and mean length, and it stops at the first accepted answer. Without one: each
    query's true curve of votes, of which it buys the best counts in advance; a rule that looks at the votes as they
    come may pass it.
    """

    name = "oracle"
    modes = BOTH

    def __init__(self, *, rates: Floats, tokens_mean: Floats, right: Floats, tokens: Floats) -> None:
        self.rates, self.tokens_mean = rates, tokens_mean
        self.right, self.tokens = right, tokens

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per price at which another query would be left out, or per budget."""
        if workload.mode is Mode.VERIFIER:
            worth = self.rates / np.maximum(self.tokens_mean, 1e-12)
            rules = [
                KnownRates(worth=worth, samples_max=workload.samples_max, price=price)
                for price in (-1.0, *_spread(np.unique(worth)))
            ]
            return [Setting(label=f"{rule.price:.3g}", rule=rule) for rule in rules]
        curves = within_limits(self.right, self.tokens, workload.samples_max)
        whole = float(self.tokens_mean.sum())
        return [
            Setting(label=f"{budget:g}", rule=FixedCount(samples=counts_for(*curves, budget * whole)))
            for budget in budgets
        ]


class Hindsight:
    """Knows the draws: how many samples a query needs until it is right, and which never will be."""

    name = "hindsight"
    modes = BOTH

    def __init__(self, right: Bools, tokens: Ints) -> None:
        self.first = right.argmax(axis=-1)
        self.ever = right.any(axis=-1)
        self.cost = np.where(self.ever, np.take_along_axis(tokens, self.first[..., None], axis=-1)[..., 0], 0)

    def settings(self, _workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per limit of what one right answer may take."""
        limits = _spread(np.unique(self.cost[self.ever]).astype(np.float64)) if self.ever.any() else [0.0]
        return [
            Setting(label=f"{limit:g}", rule=Foreseen(needed=np.where(self.ever & (self.cost <= limit), self.first, 0)))
            for limit in limits
        ]


def _spread(values: Floats) -> list[float]:
    """The values, or PRICES_MAX of them from the first to the last."""
    if len(values) > PRICES_MAX:
        values = values[np.linspace(0, len(values) - 1, PRICES_MAX).astype(np.int64)]
    return [float(value) for value in values]
