"""Early-stopping self-consistency: windows of samples until one of them is unanimous (arXiv 2401.10480)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.base import Mode, Setting, Workload, rows_like

WINDOWS = (2, 3, 4, 5, 6, 8, 10)
"""The frontier; the paper uses 4 to 8 depending on the task, its code 5."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UntilUnanimous:
    """A window of samples at a time, until all of a window gave the same answer."""

    window: int
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """The next window, or what is left of the limit."""
        unanimous = (seen.drawn > 0) & (seen.streak >= self.window)
        left = rows_like(self.samples_max, seen) - seen.drawn
        return np.where(unanimous, 0, np.clip(left, 0, self.window))


class EarlyStopping:
    """The rule of the paper."""

    name = "esc"
    modes = frozenset({Mode.VOTE})
    standard = 5.0
    allowed = (2.0, 64.0)

    def rule(self, workload: Workload, setting: float) -> UntilUnanimous:
        """`setting` is the window, in samples."""
        return UntilUnanimous(window=round(setting), samples_max=workload.samples_max)

    def settings(self, workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per window."""
        return [Setting(label=f"w{w}", rule=self.rule(workload, w)) for w in WINDOWS]
