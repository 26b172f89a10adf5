"""Snell et al.'s compute-optimal scaling: the best budget per difficulty bin, of five (arXiv 2408.03314)."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.core.beliefs import Floats
from scheduler.core.policies.base import BOTH, Setting, Workload
from scheduler.core.policies.binned import Counted, binned_curves

BINS = 5


class SnellBins(Counted):
    """Five bins of predicted difficulty; within one, every query gets the same."""

    name = "snell"
    modes = BOTH

    def curves(self, workload: Workload) -> tuple[Floats, Floats]:
        """The means of each query's bin."""
        assert workload.history is not None, "bins are measured on earlier queries"
        return binned_curves(workload, workload.history, BINS)

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget; none without a history."""
        return super().settings(workload, budgets) if workload.history is not None else []
