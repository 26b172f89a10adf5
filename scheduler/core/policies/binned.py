"""What n samples reach and take at each difficulty, measured on earlier queries that looked as hard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from scheduler.core.allocation import NOTHING, allocate
from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints
from scheduler.core.policies.base import History, Mode, Rule, Setting, Workload, in_tokens
from scheduler.core.policies.stop import UntilAccepted
from scheduler.core.policies.uniform import FixedCount


def binned_curves(workload: Workload, history: History, bins: int) -> tuple[Floats, Floats]:
    """(Q, N) gains and costs of 1..N samples of each query: the means of its difficulty bin in the history."""
    edges = np.quantile(history.beliefs.rate, np.linspace(0, 1, bins + 1)[1:-1])
    theirs, ours = (np.searchsorted(edges, rates) for rates in (history.beliefs.rate, workload.beliefs.rate))
    most = int(workload.samples_max.max(initial=1))
    overall = _to_length(history.right.mean(axis=0), most), _to_length(history.tokens.mean(axis=0), most)
    gains, costs = (np.tile(curve, (bins, 1)) for curve in overall)
    for each in range(bins):
        if (members := theirs == each).any():
            gains[each] = _to_length(history.right[members].mean(axis=0), most)
            costs[each] = _to_length(history.tokens[members].mean(axis=0), most)
    return within_limits(gains[ours], costs[ours], workload.samples_max)


def within_limits(gains: Floats, costs: Floats, samples_max: Ints) -> tuple[Floats, Floats]:
    """The curves of 1..N samples, with no gain where a query may not have as many."""
    allowed = np.arange(gains.shape[1]) <= samples_max[:, None]
    return np.ascontiguousarray(np.where(allowed, gains, 0.0)[:, 1:]), np.ascontiguousarray(costs[:, 1:])


def counts_for(gains: Floats, costs: Floats, budget_tokens: float) -> Ints:
    """How many samples each query gets of a budget, by its curves of 1..N samples."""
    arms = allocate(gains, costs, budget_tokens).arms
    return np.where(arms == NOTHING, 0, arms + 1)


class Counted(ABC):
    """A policy that gives each query a count of samples in advance, as its curves make best of a budget."""

    standard = 4.0
    allowed = (0.0, 1024.0)

    @abstractmethod
    def curves(self, workload: Workload) -> tuple[Floats, Floats]:
        """(Q, N) what 1..N samples of each query gain and take."""

    def counts(self, workload: Workload, setting: float) -> Ints:
        """`setting` is the budget, in samples per query."""
        [tokens] = in_tokens([setting], workload.beliefs)
        return counts_for(*self.curves(workload), tokens)

    def rule(self, workload: Workload, _setting: float) -> Rule:
        """For queries whose `samples_max` is what `counts` left them."""
        return up_to(workload.mode, workload.samples_max)

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget."""
        curves = self.curves(workload)
        return [
            Setting(label=f"{budget:g}", rule=up_to(workload.mode, counts_for(*curves, tokens)))
            for budget, tokens in zip(budgets, in_tokens(budgets, workload.beliefs), strict=True)
        ]


def up_to(mode: Mode, samples: Ints) -> Rule:
    """Draw a count given in advance; with a verifier, stop at the first accepted answer."""
    return UntilAccepted(samples=samples) if mode is Mode.VERIFIER else FixedCount(samples=samples)


def _to_length(curve: Floats, most: int) -> Floats:
    """The curve for 0..most samples: cut, or carried on as its last step was in cost and flat in gain."""
    if len(curve) > most:
        return np.asarray(curve[: most + 1])
    step = curve[-1] - curve[-2] if curve[-1] > 1 else 0.0
    more = curve[-1] + step * np.arange(1, most + 2 - len(curve))
    return np.concatenate([curve, more])
