"""Difficulty-adaptive self-consistency: one sample for what looks easy, a window and more for the rest (2408.13457).

The original ranks a batch by asking the model itself; here the predictor ranks. The rest is as published: the easy
part gets one sample, the others a first window of a size that their difficulty suggests, which then grows until the
Beta test holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.core.evidence import Bools, Ints, Seen
from scheduler.core.policies.adaptive_consistency import UntilBetaHolds
from scheduler.core.policies.base import Mode, Setting, Workload, rows_like

HOLDS = 0.95
FIRST_MIN = 4
"""Four equal votes are the fewest that can hold at 0.95."""
EXTENSION = 5
EASY_PARTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The frontier: the share of the workload that is taken to be easy."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ByDifficulty:
    """One sample where `easy` (Q,), else `first` (Q,) of them and extensions until the vote holds."""

    easy: Bools
    first: Ints
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """The first window, or an extension."""
        held = UntilBetaHolds(threshold=HOLDS, samples_max=self.samples_max).more(seen) == 0
        easy, first = rows_like(self.easy, seen), rows_like(self.first, seen)
        wave = np.where(seen.drawn == 0, np.where(easy, 1, first), np.where(easy | held, 0, EXTENSION))
        return np.clip(wave, 0, np.maximum(rows_like(self.samples_max, seen) - seen.drawn, 0))


class DifficultyAdaptive:
    """The rule of the paper, with our predictor's ranking."""

    name = "dsc"
    modes = frozenset({Mode.VOTE})
    standard = 0.5
    allowed = (0.0, 1.0)

    def counts(self, workload: Workload, setting: float) -> Ints:
        """One for the easy part, which is the share `setting` of the queries."""
        ranks = np.argsort(np.argsort(-workload.beliefs.rate, kind="stable")) + 0.5
        return np.where(ranks < setting * len(workload), 1, workload.samples_max)

    def rule(self, workload: Workload, _setting: float) -> ByDifficulty:
        """For queries whose `samples_max` is what `counts` left them."""
        return ByDifficulty(
            easy=workload.samples_max <= 1, first=_first_window(workload), samples_max=workload.samples_max
        )

    def settings(self, workload: Workload, _budgets: Sequence[float]) -> list[Setting]:
        """One per share of easy queries."""
        parts = [(part, replace(workload, samples_max=self.counts(workload, part))) for part in EASY_PARTS]
        return [Setting(label=f"{part:g}", rule=self.rule(shared, part)) for part, shared in parts]


def _first_window(workload: Workload) -> Ints:
    """As many votes as would hold if they fell as predicted: few where most agree, more where they scatter."""
    share = np.clip(workload.beliefs.rate, 0.55, 1.0)
    needed = np.ceil(FIRST_MIN / (2 * share - 1) ** 2)
    return np.asarray(np.clip(needed, FIRST_MIN, np.maximum(workload.samples_max // 2, FIRST_MIN)), np.int64)
