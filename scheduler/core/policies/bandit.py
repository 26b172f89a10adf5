"""Bandit elimination: rounds over the queries still open, fewer and fewer of them (arXiv 2506.12721).

Each round draws one sample of every query that is still open. A solved query leaves. Those that look hopeless are put
last: a query stays while the upper confidence bound of its rate is above the threshold, so that with time the
unsolvable ones are skipped. Without a verifier a query leaves when the entropy of its answers is low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.base import BOTH, Mode, Rule, Setting, Workload, rows_like

BOUNDS = (0.9, 0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.01)
"""The frontier with a verifier: the upper bound of a rate below which a query is dropped."""
AGREEMENTS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""The frontier of votes: the leader's share at which a query counts as solved, after two samples at least."""
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WhileOpen:
    """One sample while nothing is accepted and the rate may still be above the bound."""

    bound: float
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """One. k failures leave rates up to 1 - (1 - CONFIDENCE)^(1/k) possible."""
        upper = 1 - (1 - CONFIDENCE) ** (1 / np.maximum(seen.drawn, 1))
        hopeful = (upper >= self.bound) | (seen.drawn == 0)
        goes_on = hopeful & (seen.accepted == 0) & (seen.drawn < rows_like(self.samples_max, seen))
        return np.asarray(goes_on, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WhileDivided:
    """One sample while the answers do not agree enough."""

    share: float
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """One, of two at least."""
        agreed = (seen.drawn >= 2) & (seen.evidence.leader >= self.share * seen.drawn)
        return np.asarray(~agreed & (seen.drawn < rows_like(self.samples_max, seen)), np.int64)


class Elimination:
    """The rule of the paper."""

    name = "bandit"
    modes = BOTH
    standard = 0.5
    allowed = (0.0, 1.0)

    def rule(self, workload: Workload, setting: float) -> Rule:
        """`setting` is the bound with a verifier, the share without one."""
        if workload.mode is Mode.VERIFIER:
            return WhileOpen(bound=setting, samples_max=workload.samples_max)
        return WhileDivided(share=setting, samples_max=workload.samples_max)

    def settings(self, workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per bound, or per share."""
        frontier = BOUNDS if workload.mode is Mode.VERIFIER else AGREEMENTS
        return [Setting(label=f"{at:g}", rule=self.rule(workload, at)) for at in frontier]
