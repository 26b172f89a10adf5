"""allotd's rule for votes: go on while the vote is open, and more samples may still turn it into a right one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints, Seen
from scheduler.core.policies.adaptive_consistency import held
from scheduler.core.policies.base import Setting, Workload, rows_like
from scheduler.core.stopping import leader_survives

SETTLED_AT = (0.8, 0.9, 0.95, 0.99, 1.0)
"""Certainties at which a vote is settled whatever the price; 1 leaves it to the price alone."""
PRICES = (0.0, *(float(price) for price in 2.0 ** np.arange(-14.0, 2.0, 0.75)))
"""In units of what a query's mean sample is believed to buy per token."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WhileAVoteIsWorthIt:
    """One sample, while the vote is open and P(the leader falls) x P(a sample is right) / E[tokens] reaches the price.

    Adaptive-Consistency spends most where answers scatter, on what will never settle. Two things are known there: how
    few samples are left to change anything, and which queries the predictor calls hopeless. At price 0 this is
    Adaptive-Consistency, but for the election, in which votes are weighed.
    """

    worth: Floats
    price: float
    settled_at: float
    samples_max: Ints

    def more(self, seen: Seen) -> Ints:
        """One, while it may matter; everybody has one."""
        evidence, most = seen.evidence, rows_like(self.samples_max, seen)
        settled = (held(evidence.leader, evidence.runner_up) >= self.settled_at) & (evidence.leader > 0)
        decided = evidence.leader - evidence.runner_up > most - seen.drawn
        matters = may_change(seen, most) * rows_like(self.worth, seen) >= self.price
        goes_on = (seen.drawn == 0) | (~settled & ~decided & (matters | (self.price == 0)))
        return np.asarray(goes_on & (seen.drawn < most), np.int64)


def may_change(seen: Seen, samples_max: Ints) -> Floats:
    """The chance that the leader is overtaken in the samples left; 1 where nobody leads."""
    evidence = seen.evidence
    left = np.broadcast_to(samples_max, seen.drawn.shape) - seen.drawn
    others = evidence.samples - evidence.leader - evidence.runner_up
    cells = np.stack([evidence.leader, evidence.runner_up, others, np.maximum(left, 0)], axis=-1).astype(np.int64)
    kinds, place = np.unique(cells.reshape(-1, 4), axis=0, return_inverse=True)
    survives = np.array([leader_survives(*map(int, kind)) if kind[0] > 0 else 0.0 for kind in kinds])
    return np.asarray(1 - survives[place.ravel()].reshape(seen.drawn.shape))


def while_a_vote_is_worth_it(workload: Workload) -> list[Setting]:
    """The rule at each certainty and price."""
    beliefs = workload.beliefs
    worth = beliefs.rate / beliefs.tokens_mean
    usual = float(worth.mean())
    return [
        Setting(
            label=f"{settled_at:g} at {price:.3g}",
            rule=WhileAVoteIsWorthIt(
                worth=worth / usual, price=price, settled_at=settled_at, samples_max=workload.samples_max
            ),
            weighs_votes=True,
            rehearse=price > 0,
        )
        for settled_at in SETTLED_AT
        for price in PRICES
    ]
