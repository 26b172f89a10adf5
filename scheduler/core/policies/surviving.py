"""allotd's rule for votes: go on while more samples may still turn a vote that may still become right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.base import Setting, Workload, rows_like
from scheduler.core.stopping import leader_survives

THRESHOLDS = tuple(float(t) for t in 0.5 * 0.78 ** np.arange(30))
"""The frontier, from chances of a half down to one in three thousand."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UntilUnlikelyToChange:
    """One sample, until P(the leader is overtaken before the samples end) x P(a sample is right) is below a threshold.

    Adaptive-Consistency spends most where answers scatter, on what will never settle. Two things are known there: how
    few samples are left to change anything, and that queries the predictor calls hopeless are not won by a vote.
    """

    rates: Floats
    threshold: float
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """One, while it may matter; everybody has one."""
        most = rows_like(self.samples_max, seen)
        matters = may_change(seen, most) * rows_like(self.rates, seen) > self.threshold
        return np.asarray((matters | (seen.drawn == 0)) & (seen.drawn < most), np.int64)


def may_change(seen: Seen, samples_max: Ints) -> Floats:
    """The chance that the leader is overtaken in the samples left; 1 where nobody leads."""
    evidence = seen.evidence
    left = np.broadcast_to(samples_max, seen.drawn.shape) - seen.drawn
    others = evidence.samples - evidence.leader - evidence.runner_up
    cells = np.stack([evidence.leader, evidence.runner_up, others, np.maximum(left, 0)], axis=-1).astype(np.int64)
    kinds, place = np.unique(cells.reshape(-1, 4), axis=0, return_inverse=True)
    survives = np.array([leader_survives(*map(int, kind)) if kind[0] > 0 else 0.0 for kind in kinds])
    return np.asarray(1 - survives[place.ravel()].reshape(seen.drawn.shape))


def until_unlikely_to_change(workload: Workload) -> list[Setting]:
    """The rule at each threshold."""
    return [
        Setting(
            label=f"{threshold:.3g}",
            rule=UntilUnlikelyToChange(
                rates=workload.beliefs.rate, threshold=threshold, samples_max=workload.samples_max
            ),
        )
        for threshold in THRESHOLDS
    ]
