"""Damani et al.'s greedy allocation by predicted marginal gains (arXiv 2410.04707), online and binned offline.

The original draws all its samples and takes the best; here a verifier ends the search at the first accepted answer,
for this rule as for ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.policies.base import BOTH, Mode, Setting, Workload
from scheduler.core.policies.binned import Counted, binned_curves, within_limits

BINS = 20


class DamaniOnline(Counted):
    """Greedy on gain(j) = p (1 - p)^(j - 1) per predicted token, p being the predicted rate."""

    name = "damani"
    modes = frozenset({Mode.VERIFIER})

    def curves(self, workload: Workload) -> tuple[Floats, Floats]:
        """By each query's predicted rate."""
        rate = workload.beliefs.rate[:, None]
        n = np.arange(int(workload.samples_max.max(initial=1)) + 1)
        failing = (1 - rate) ** n
        tokens = workload.beliefs.tokens_mean[:, None] * (1 - failing) / rate
        return within_limits(1 - failing, tokens, workload.samples_max)


class DamaniBinned(Counted):
    """The offline variant: a budget per bin of predicted difficulty, from curves measured on earlier queries."""

    name = "damani-binned"
    modes = BOTH

    def curves(self, workload: Workload) -> tuple[Floats, Floats]:
        """The means of each query's bin."""
        assert workload.history is not None, "bins are measured on earlier queries"
        return binned_curves(workload, workload.history, BINS)

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget; none without a history."""
        return super().settings(workload, budgets) if workload.history is not None else []
