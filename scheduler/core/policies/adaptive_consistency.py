"""Adaptive-Consistency: one vote after the other until the leader is likely to be the majority (arXiv 2305.11860)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import lgamma

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import TOP_VOTES, Ints, Seen
from scheduler.core.policies.base import Mode, Setting, Workload, rows_like
from scheduler.core.stopping import leader_holds

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 0.999)
"""The frontier."""
STANDARD = 0.95
"""The threshold of the published figures."""
GRID = 2000
"""Points of the integral over a gamma variable: its error stays below 1e-5, a thousandth of the original's sampling."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UntilBetaHolds:
    """One sample, until P(p > 1/2 | votes of the first two answers) reaches the threshold."""

    threshold: float
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """One, while the vote is open."""
        holds = held(seen.evidence.leader, seen.evidence.runner_up)
        settled = (holds >= self.threshold) & (seen.evidence.leader > 0)
        return np.asarray(~settled & (seen.drawn < rows_like(self.samples_max, seen)), np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UntilDirichletHolds:
    """One sample, until the leader is the most likely answer of the first five with the threshold's certainty."""

    threshold: float
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """One, while the vote is open."""
        settled = (leader_is_most_likely(seen.top_votes) >= self.threshold) & (seen.evidence.leader > 0)
        return np.asarray(~settled & (seen.drawn < rows_like(self.samples_max, seen)), np.int64)


class AdaptiveConsistency:
    """The Beta rule of the paper."""

    name = "asc"
    modes = frozenset({Mode.VOTE})
    standard = STANDARD
    allowed = (0.5, 1.0)

    def rule(self, workload: Workload, setting: float) -> UntilBetaHolds:
        """`setting` is the threshold."""
        return UntilBetaHolds(threshold=setting, samples_max=workload.samples_max)

    def settings(self, workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per threshold."""
        return [Setting(label=f"{t:g}", rule=self.rule(workload, t)) for t in THRESHOLDS]


class AdaptiveConsistencyDirichlet:
    """The Dirichlet rule of the paper."""

    name = "asc-dirichlet"
    modes = frozenset({Mode.VOTE})
    standard = STANDARD
    allowed = (0.5, 1.0)

    def rule(self, workload: Workload, setting: float) -> UntilDirichletHolds:
        """`setting` is the threshold."""
        return UntilDirichletHolds(threshold=setting, samples_max=workload.samples_max)

    def settings(self, workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per threshold."""
        return [Setting(label=f"{t:g}", rule=self.rule(workload, t)) for t in THRESHOLDS]


def leader_is_most_likely(top_votes: Ints) -> Floats:
    """P(the first answer's share is the largest) for shares ~ Dirichlet(votes + 1), over the answers that have votes.

    With fewer than three answers this is the Beta rule, as in the published code. Shares are independent gamma
    variables divided by their sum, so the chance is one integral: the density of the first times the chance that each
    other one is smaller.
    """
    votes, place = np.unique(top_votes.reshape(-1, TOP_VOTES), axis=0, return_inverse=True)
    chances = np.array([_most_likely(tuple(int(v) for v in row if v > 0)) for row in votes])
    return chances[place.ravel()].reshape(top_votes.shape[:-1])


@cache
def _most_likely(votes: tuple[int, ...]) -> float:
    if len(votes) < 3:
        first, second = [*votes, 0, 0][:2]
        return leader_holds(first, second)
    most = votes[0] + 1
    x = np.linspace(1e-9, most + 12 * most**0.5 + 20, GRID)
    density = np.exp((most - 1) * np.log(x) - x - lgamma(most))
    smaller = np.prod([_gamma_below(x, v + 1) for v in votes[1:]], axis=0)
    return float(np.trapezoid(density * smaller, x))


def _gamma_below(x: Floats, shape: int) -> Floats:
    """P(a gamma variable of a whole shape is below x): 1 - sum_{k < shape} x^k e^-x / k!."""
    k = np.arange(shape)[:, None]
    log_terms = k * np.log(x) - x - np.array([lgamma(i + 1) for i in range(shape)])[:, None]
    return np.asarray(1 - np.exp(log_terms).sum(axis=0))


def held(leader: Floats, runner_up: Floats) -> Floats:
    """`leader_holds` of each cell, by the votes of its first two answers."""
    most = int(leader.max(initial=0)) + 1
    return _table(most)[leader.astype(np.int64), runner_up.astype(np.int64)]


@cache
def _table(size: int) -> Floats:
    return np.array([[leader_holds(first, second) for second in range(size)] for first in range(size)])
