"""Best-of-n that ends at the first accepted answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.base import Mode, Setting, Workload, rows_like, whole


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UntilAccepted:
    """One sample after the other until one is accepted, `samples` (Q,) at most."""

    samples: Ints

    def more(self, seen: Seen) -> Ints:
        """One, while nothing is accepted and the count is not reached."""
        return np.asarray((seen.accepted == 0) & (seen.drawn < rows_like(self.samples, seen)), np.int64)


class BestOfNWithStop:
    """The same limit for every query, which the solved ones do not use up."""

    name = "stop"
    modes = frozenset({Mode.VERIFIER})

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per whole budget."""
        return [
            Setting(label=str(n), rule=UntilAccepted(samples=np.minimum(n, workload.samples_max)))
            for n in whole(budgets)
        ]
