"""When a reasoning model has thought enough: look at what it would answer, now and then, and stop once it is settled.

While a model thinks, its answer can be asked for at a price of a few tokens. A schedule says when (late and ever more
rarely, as most of the thinking of easy queries is over before a first look pays), a logistic model says how likely the
answer is right, and a cap ends the thinking of what will hardly be solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Bools, Ints

FEATURES = ("confidence", "entropy", "tokens", "same", "same twice", "first look")
UNSURE = 1e-3
"""Confidences are kept this far from 0 and 1."""
NEVER = 2.0
"""A threshold that no chance reaches: only the cap ends the thinking."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Thoughts:
    """T thinkings with K points at which the answer was asked for: all (T, K), `count` (T,) of them real.

    `tokens` (K,) is where the points lie and `asking` what asking takes. `final_tokens` and `final_right` (T,) are the
    natural end.
    """

    tokens: Ints
    asking: int
    answers: Ints
    right: Bools
    confidence: Floats
    entropy: Floats
    count: Ints
    final_tokens: Ints
    final_right: Bools


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkingRule:
    """Look at the points of `schedule` (indices), stop at a chance of `threshold`, and at `cap` tokens in any case."""

    schedule: tuple[int, ...]
    threshold: float
    cap: int


def schedule(points: Ints, first: int, growth: float) -> tuple[int, ...]:
    """The points to look at: from `first` tokens on, each `growth` times as late as the one before, one at least."""
    chosen: list[int] = []
    wanted = float(first)
    for index, tokens in enumerate(points):
        if tokens >= wanted:
            chosen.append(index)
            wanted = max(float(tokens) + 1, tokens * growth)
    return tuple(chosen)


def look(thoughts: Thoughts, points: tuple[int, ...], k: int) -> Floats:
    """(T, len(FEATURES)) what the k-th look of a schedule shows."""
    at = points[k]
    sure = np.clip(thoughts.confidence[:, at], UNSURE, 1 - UNSURE)
    same, twice = (np.zeros(len(sure)) for _ in range(2))
    if k > 0:
        same = (thoughts.answers[:, at] == thoughts.answers[:, points[k - 1]]).astype(np.float64)
    if k > 1:
        twice = same * (thoughts.answers[:, points[k - 1]] == thoughts.answers[:, points[k - 2]])
    late = np.full(len(sure), np.log(float(thoughts.tokens[at])))
    first = np.full(len(sure), float(k == 0))
    return np.stack([np.log(sure / (1 - sure)), thoughts.entropy[:, at], late, same, twice, first], axis=1)


def think(thoughts: Thoughts, rule: ThinkingRule, chances: Floats) -> tuple[NDArray[np.bool_], Ints]:
    """Whether each thinking ends with the right answer, and the tokens it takes with all its looks.

    `chances` (T, len(schedule)) is how likely the answer of each look is right.
    """
    thinking = np.ones(len(thoughts.count), bool)
    right, tokens = np.zeros(len(thinking), bool), np.zeros(len(thinking), np.int64)
    looks = np.zeros(len(thinking), np.int64)
    for k, at in enumerate(rule.schedule):
        spent = int(thoughts.tokens[at])
        if spent >= rule.cap:
            break
        here = thinking & (thoughts.final_tokens > spent) & (thoughts.count > at)
        looks += here
        ends = here & (chances[:, k] >= rule.threshold)
        right[ends] = thoughts.right[ends, at]
        tokens[ends] = spent + thoughts.asking * looks[ends]
        thinking &= ~ends
    natural = thinking & (thoughts.final_tokens <= rule.cap)
    right[natural] = thoughts.final_right[natural]
    tokens[natural] = thoughts.final_tokens[natural] + thoughts.asking * looks[natural]
    cut = thinking & ~natural
    last = np.minimum(np.searchsorted(thoughts.tokens, rule.cap, side="right"), thoughts.count) - 1
    right[cut] = (thoughts.right[np.arange(len(last)), np.maximum(last, 0)] & (last >= 0))[cut]
    tokens[cut] = rule.cap + thoughts.asking * (looks[cut] + 1)
    return right, tokens


def concave(accuracies: Floats, costs: Floats) -> Ints:
    """The settings on the upper concave envelope of (cost, accuracy), from nothing spent on, cheap to dear."""
    order = [int(i) for i in np.lexsort((-accuracies, costs))]
    kept: list[int] = []
    for i in order:
        if kept and accuracies[i] <= accuracies[kept[-1]]:
            continue
        while kept and _is_below(kept, i, accuracies, costs):
            kept.pop()
        kept.append(i)
    return np.array(kept, np.int64)


def _is_below(kept: list[int], i: int, accuracies: Floats, costs: Floats) -> bool:
    """Whether the last kept setting lies under the line from the one before it (or from nothing) to setting i."""
    chain = [(0.0, 0.0), *((float(costs[k]), float(accuracies[k])) for k in kept[-2:])][-2:]
    (x0, y0), (x1, y1) = next(pairwise(chain))
    return (y1 - y0) * (float(costs[i]) - x0) <= (float(accuracies[i]) - y0) * (x1 - x0)
