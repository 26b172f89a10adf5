"""Damani et al.'s greedy allocation by predicted marginal gains (arXiv 2410.04707), online and binned offline.

The original draws all its samples and takes the best; here a verifier ends the search at the first accepted answer,
for this rule as for ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.core.policies.base import BOTH, Mode, Setting, Workload
from scheduler.core.policies.binned import binned_curves, counted, within_limits

BINS = 20


class DamaniOnline:
    """Greedy on gain(j) = p (1 - p)^(j - 1) per predicted token, p being the predicted rate."""

    name = "damani"
    modes = frozenset({Mode.VERIFIER})

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget."""
        rate = workload.beliefs.rate[:, None]
        n = np.arange(int(workload.samples_max.max(initial=1)) + 1)
        failing = (1 - rate) ** n
        tokens = workload.beliefs.tokens_mean[:, None] * (1 - failing) / rate
        return counted(workload, budgets, *within_limits(1 - failing, tokens, workload.samples_max))


class DamaniBinned:
    """The offline variant: a budget per bin of predicted difficulty, from curves measured on earlier queries."""

    name = "damani-binned"
    modes = BOTH

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget; none without a history."""
        if workload.history is None:
            return []
        return counted(workload, budgets, *binned_curves(workload, workload.history, BINS))
