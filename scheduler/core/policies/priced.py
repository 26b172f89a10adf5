"""One price for all: a query goes on while its next sample's chance per token is above the price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Beliefs, Floats
from scheduler.core.curves import best_of_n, tokens_until_accepted
from scheduler.core.evidence import Ints, Seen
from scheduler.core.lessons import next_right
from scheduler.core.policies.base import BOTH, Mode, Setting, Workload, rows_like
from scheduler.core.policies.voting import while_a_vote_is_worth_it
from scheduler.types import Lessons


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WhileWorthIt:
    """Goes on while nothing is accepted and E[right | evidence] / E[tokens] is above `price`.

    With a posterior that failures only lower this is the best any rule can do: what is not worth its price now will
    not be later (the Pandora rule, arXiv 2510.01394, with tokens as the cost).
    """

    beliefs: Beliefs
    lessons: Lessons
    samples_max: Ints
    price: float

    def more(self, seen: Seen) -> Ints:
        """One sample, while it is worth it."""
        chance = next_right(self.lessons, self.beliefs, seen.evidence)
        tokens = self.beliefs.tokens_mean * tie_breaks(len(self.beliefs))
        worth = chance > self.price * rows_like(tokens, seen)
        goes_on = worth & (seen.accepted == 0) & (seen.drawn < rows_like(self.samples_max, seen))
        return np.asarray(goes_on, np.int64)


def prices_for(workload: Workload, budgets: Sequence[float]) -> list[float]:
    """The prices at which the workload is expected to use each budget, in samples per query."""
    beliefs, most = workload.beliefs, int(workload.samples_max.max(initial=1))
    allowed = np.arange(most + 1) <= workload.samples_max[:, None]
    gains = np.diff(best_of_n(beliefs.alpha, beliefs.beta, most), axis=1)
    costs = np.diff(tokens_until_accepted(beliefs.alpha, beliefs.beta, beliefs.tokens_mean, most), axis=1)
    dearer = np.maximum(costs * tie_breaks(len(beliefs))[:, None], 1e-12)
    worth: Floats = np.where(allowed[:, 1:], gains / dearer, -1.0).ravel()
    best_first = np.argsort(-worth)
    spent = np.cumsum(np.where(allowed[:, 1:], costs, 0.0).ravel()[best_first])[:-1]
    totals = np.asarray(budgets) * beliefs.tokens_mean.sum()
    next_best = np.append(worth[best_first], -1.0)  # a rule goes on above its price, so the price is the next one's
    return [max(0.0, float(price)) for price in next_best[np.searchsorted(spent, totals * (1 - ROUNDING)) + 1]]


def tie_breaks(queries: int) -> Floats:
    """Factors next to 1, each its own, so that of queries that look the same a budget can pay for some."""
    golden = 0.6180339887498949  # its multiples spread evenly, however many there are
    return np.asarray(1 + TIE * ((np.arange(queries) * golden) % 1.0))


TIE = 1e-6
ROUNDING = 1e-9
"""What sums of many floats may differ by."""


class Allotd:
    """One shadow price for the whole workload, and a posterior that every sample updates."""

    name = "allotd"
    modes = BOTH

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """One per budget, at the price that is expected to use it; in a vote, one per certainty and price."""
        if workload.mode is Mode.VOTE:
            return while_a_vote_is_worth_it(workload)
        return [
            Setting(
                label=f"{budget:g}",
                rule=WhileWorthIt(
                    beliefs=workload.beliefs,
                    lessons=workload.lessons,
                    samples_max=workload.samples_max,
                    price=price,
                ),
            )
            for budget, price in zip(budgets, prices_for(workload, budgets), strict=True)
        ]
