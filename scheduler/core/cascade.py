"""In which order several models are asked for a sample that a verifier accepts, and what that gains and costs.

The next sample is always that of the model with the best chance of success per cost. Where what one model does says
nothing of another, and chances only fall, no order gains more at any price (Weitzman 1979, "Optimal Search for the Best
Alternative"). In fact models fail on the same queries, so a failure of one speaks against the others too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from scheduler.core.beliefs import Floats

ALIKE = 0.75
"""How far a failure of one model moves the log-odds of another, where it moves its own by 1. Between the four arms of
gsm8k-6b-175b it is 0.4 to 1.3, the mean of all pairs 0.8, if every arm's chance is worth one sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A model that may be asked: the belief in one sample's success, its cost, and how many may be drawn.

    `failures` of them were drawn and refused already.
    """

    alpha: float
    beta: float
    cost: float
    samples_max: int
    failures: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cascade:
    """Further samples in the order in which they are drawn.

    `order` (n,) names the candidate of each; `gains` (n,) is the chance that one of the first 1..n is right, and
    `costs` (n,) what drawing them until then is expected to cost.
    """

    order: tuple[int, ...]
    gains: Floats
    costs: Floats


def cascade(candidates: Sequence[Candidate], alike: float = ALIKE) -> Cascade:
    """All samples that may still be drawn of a query, each of the model that is then the best chance for its cost."""
    failures = [candidate.failures for candidate in candidates]
    left = sum(max(0, candidate.samples_max - candidate.failures) for candidate in candidates)
    order, gains, costs = [], np.empty(left), np.empty(left)
    reached, spent = 1.0, 0.0
    for n in range(left):
        open_to = [i for i, candidate in enumerate(candidates) if failures[i] < candidate.samples_max]
        believed = zip(beliefs(candidates, failures, alike), failures, strict=True)
        chances = [alpha / (alpha + beta + failed) for (alpha, beta), failed in believed]
        best = max(open_to, key=lambda i: chances[i] / max(candidates[i].cost, TINY))
        spent += reached * candidates[best].cost
        reached *= 1 - chances[best]
        failures[best] += 1
        order.append(best)
        gains[n], costs[n] = 1 - reached, spent
    return Cascade(order=tuple(order), gains=gains, costs=costs)


def beliefs(
    candidates: Sequence[Candidate], failures: Sequence[int], alike: float = ALIKE
) -> list[tuple[float, float]]:
    """The Beta distribution of each model's chance once the others have failed so often, its own failures left out."""
    moves = [c.beta / (c.beta + failed) for c, failed in zip(candidates, failures, strict=True)]
    found = []
    for i, candidate in enumerate(candidates):
        factor = prod(move for j, move in enumerate(moves) if j != i) ** alike
        worth = candidate.alpha + candidate.beta
        mean = candidate.alpha * factor / (candidate.alpha * factor + candidate.beta)
        found.append((worth * mean, worth * (1 - mean)))
    return found


TINY = 1e-9
"""In nano-dollars: what is free is asked first."""
