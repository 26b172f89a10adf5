"""Snell et al.'s compute-optimal scaling: the best budget per difficulty bin, of five (arXiv 2408.03314)."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.core.policies.base import BOTH, Setting, Workload
from scheduler.core.policies.binned import binned_curves, counted

BINS = 5


class SnellBins:
    """Five bins of predicted difficulty; within one, every query gets the same."""

    name = "snell"
    modes = BOTH

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget; none without a history."""
        if workload.history is None:
            return []
        return counted(workload, budgets, *binned_curves(workload, workload.history, BINS))
