"""The lines nobody can pass: what an allocator could do that knew what will happen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.base import Mode, Setting, Workload, rows_like


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


class Oracle:
    """Knows each query's true success rate and mean length, and stops at the first accepted answer."""

    name = "oracle"
    modes = frozenset({Mode.VERIFIER})

    def __init__(self, rates: Floats, tokens_mean: Floats) -> None:
        self.worth = rates / tokens_mean

    def settings(self, workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per price at which another query would be left out; at most PRICES_MAX of them."""
        prices = np.unique(self.worth)
        if len(prices) > PRICES_MAX:
            prices = prices[np.linspace(0, len(prices) - 1, PRICES_MAX).astype(np.int64)]
        below = [-1.0, *(float(price) for price in prices)]
        return [
            Setting(
                label=f"{price:.3g}",
                rule=KnownRates(worth=self.worth, samples_max=workload.samples_max, price=price),
            )
            for price in below
        ]


PRICES_MAX = 100
