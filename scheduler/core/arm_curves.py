"""What 1..A samples of queries gain and cost, whether a verifier ends the search or a vote."""

from __future__ import annotations

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.curves import best_of_n
from scheduler.core.evidence import Bools
from scheduler.core.votes import vote_costs, vote_curve
from scheduler.core.waves import cheapest_waves


def arm_curves(
    alpha: Floats, beta: Floats, prompt_cost: Floats, sample_cost: Floats, *, voted: Bools, samples_max: int
) -> tuple[Floats, Floats]:
    """(Q, samples_max + 1) the chance of a right answer, and the expected cost, of up to 0..samples_max samples.

    `voted` (Q,) are those whose answer most samples elect; the others end at the first sample that is accepted.
    """
    gains, costs = np.empty((2, len(alpha), samples_max + 1))
    if (judged := ~voted).any():
        gains[judged] = best_of_n(alpha[judged], beta[judged], samples_max)
        costs[judged], _ = cheapest_waves(
            alpha[judged], beta[judged], prompt_cost[judged], sample_cost[judged], samples_max
        )
    if voted.any():
        gains[voted] = vote_curve(alpha[voted], beta[voted], samples_max)
        costs[voted] = vote_costs(alpha[voted], beta[voted], prompt_cost[voted], sample_cost[voted], samples_max)
    return gains, costs
