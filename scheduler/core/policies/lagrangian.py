"""Solve, then learn: the best count of each earlier query at a price, imitated for new ones (arXiv 2604.14853).

The original imitates with a classifier; with a predicted difficulty as its only feature that is the most frequent
choice among the earlier queries that looked most alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.core.allocation import NOTHING, allocate
from scheduler.core.evidence import Ints
from scheduler.core.policies.base import BOTH, History, Rule, Setting, Workload
from scheduler.core.policies.binned import up_to

NEIGHBOURS = 15


class SolveThenLearn:
    """The oracle's choices on the history, learned."""

    name = "lagrangian"
    modes = BOTH
    standard = 4.0
    allowed = (0.0, 1024.0)

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget; none without a history."""
        if workload.history is None:
            return []
        return [
            Setting(label=f"{budget:g}", rule=up_to(workload.mode, self.counts(workload, budget))) for budget in budgets
        ]

    def rule(self, workload: Workload, _setting: float) -> Rule:
        """For queries whose `samples_max` is what `counts` left them."""
        return up_to(workload.mode, workload.samples_max)

    def counts(self, workload: Workload, setting: float) -> Ints:
        """The most frequent of the counts that the oracle gives to each query's neighbours at a budget.

        `setting` is that budget, in samples per query.
        """
        history = workload.history
        assert history is not None, "it imitates what was best for earlier queries"
        alike = _neighbours(workload, history)
        gains, costs = (np.ascontiguousarray(curve[:, 1:]) for curve in (history.right, history.tokens))
        solved = allocate(gains, costs, setting * float(history.beliefs.tokens_mean.sum())).arms
        counts = np.where(solved == NOTHING, 0, solved + 1)
        return np.minimum(_most_frequent(counts[alike]), workload.samples_max)


def _neighbours(workload: Workload, history: History) -> Ints:
    """(Q, NEIGHBOURS) the earlier queries whose predicted rate is closest."""
    apart = np.abs(workload.beliefs.rate[:, None] - history.beliefs.rate)
    return np.argsort(apart, axis=1, kind="stable")[:, :NEIGHBOURS]


def _most_frequent(counts: Ints) -> Ints:
    """The most frequent value of each row, the smaller one of equals."""
    return np.array([np.bincount(row).argmax() for row in counts], np.int64)
