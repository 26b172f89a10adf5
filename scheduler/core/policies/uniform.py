"""The same number of samples for every query: what everything else is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.base import BOTH, Setting, Workload, rows_like, whole


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FixedCount:
    """Draws `samples` (Q,) of each query, all at once."""

    samples: Ints

    def more(self, seen: Seen) -> Ints:
        """What is missing of the count."""
        return np.asarray(np.maximum(rows_like(self.samples, seen) - seen.drawn, 0))


class Uniform:
    """n samples of every query, then the best or the most frequent."""

    name = "uniform"
    modes = BOTH

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per whole budget."""
        return [
            Setting(label=str(n), rule=FixedCount(samples=np.minimum(n, workload.samples_max))) for n in whole(budgets)
        ]
