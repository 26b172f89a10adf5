"""its_hub's adaptive self-consistency: 2, 4, 8, ... samples until enough of them agree (its-hub 1.2.0)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.base import Mode, Setting, Workload, rows_like

THRESHOLDS = (0.51, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)
"""The frontier."""
FIRST = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UntilEnoughAgree:
    """Two samples, then as many again as there are, until the leader has its share of the readable answers."""

    threshold: float
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """As many as there are, within the limit."""
        readable = seen.drawn - seen.evidence.unreadable
        agree = (readable > 0) & (seen.evidence.leader >= self.threshold * np.maximum(readable, 1))
        wave = np.where(seen.drawn == 0, FIRST, seen.drawn)
        return np.where(agree, 0, np.clip(rows_like(self.samples_max, seen) - seen.drawn, 0, wave))


class ItsHub:
    """The rule of the library."""

    name = "its-hub"
    modes = frozenset({Mode.VOTE})
    standard = 0.75
    allowed = (0.0, 1.0)

    def rule(self, workload: Workload, setting: float) -> UntilEnoughAgree:
        """`setting` is the leader's share of the readable answers."""
        return UntilEnoughAgree(threshold=setting, samples_max=workload.samples_max)

    def settings(self, workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per share."""
        return [Setting(label=f"{t:g}", rule=self.rule(workload, t)) for t in THRESHOLDS]
