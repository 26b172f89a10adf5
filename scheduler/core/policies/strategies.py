"""The daemon's own strategies, as they run in a worker: the same limit for every query, waves and all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.core.evidence import Ints
from scheduler.core.policies.base import Mode, Setting, Workload, whole


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StrategyRule:
    """Run the named strategy with `samples` (Q,) at most; it keeps its own count, so it is driven, not asked."""

    strategy: str
    samples: Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainStrategy:
    """A strategy under a uniform budget, as the daemon plans without a predictor."""

    name: str
    strategy: str
    modes: frozenset[Mode]

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per whole budget."""
        return [
            Setting(label=str(n), rule=StrategyRule(strategy=self.strategy, samples=workload.samples_max.clip(max=n)))
            for n in whole(budgets)
        ]


BEST_OF_N = PlainStrategy(name="best_of_n", strategy="best_of_n", modes=frozenset({Mode.VERIFIER}))
SELF_CONSISTENCY = PlainStrategy(name="self_consistency", strategy="self_consistency", modes=frozenset({Mode.VOTE}))
