"""Who gets which budget: one shadow price for all queries, and for each the arm that is worth the most at that price.

Each query is given one arm (a model, a strategy and a number of samples) or nothing. Choosing, per query, the largest
gain - price * cost finds the vertices of the upper concave envelope of its arms, so S-shaped curves need no care
(Lagrangian relaxation of the multiple-choice knapsack; arXiv 2604.14853, 2606.03092). The price is the one at which the
budget is used up, to one step of one query: the gain then misses the relaxed optimum by less than that step's gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints

MANY = 99.5
"""From so many on, numbers are written out, as two digits would need an exponent."""
NOTHING = -1
"""The arm of a query that is abandoned."""
FEW = 2048
"""Queries whose steps are simply sorted; of more, a sample of as many guesses the price first."""
CHUNK = 4096
"""Rows looked at together: 16 arms of them fit a processor's second cache."""
AROUND = 1.05
"""The price of a sample of FEW queries is mostly this close to that of all."""
FARTHER = 1.5
"""Where it was not, the next price to try."""
TOLD_APART, SAME_PRICE = 0.9, 1e-3
"""Halving prices ends where that leaves nine of ten queries undecided: they are alike, and are simply sorted."""
SAME_SLOPE = 1e-12
"""Steps whose slopes differ by less lie on one line."""


class Reason(IntEnum):
    """Why a query was abandoned, or that it was not."""

    FUNDED = 0
    HOPELESS = 1
    TOO_DEAR = 2
    UNAFFORDABLE = 3

    @property
    def sentence(self) -> str:
        """What people read."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.FUNDED: "funded",
    Reason.HOPELESS: "no arm is expected to answer it",
    Reason.TOO_DEAR: "what it would cost answers more elsewhere",
    Reason.UNAFFORDABLE: "its cheapest arm costs more than the whole budget",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Allocation:
    """One arm per query and what they cost and gain together.

    `price` is the gain that one more unit of cost would bring at the margin, 0 where nothing is left to buy. No way of
    spending the budget gains more than `bound`.
    """

    arms: Ints
    price: float
    cost: float
    gain: float
    bound: float

    @property
    def gap(self) -> float:
        """How much more than this the best allocation could gain at most."""
        return max(0.0, self.bound - self.gain)


def allocate(gains: Floats, costs: Floats, budget: float) -> Allocation:
    """The best arm for each query within the budget.

    Args:
        gains: (Q, A) the expected right answers of each arm; doing nothing gains 0.
        costs: (Q, A) the expected cost of each arm, 0 or more; the arms need no order.
        budget: what all arms together may be expected to cost.
    """
    assert gains.shape == costs.shape, "a cost for each gain"
    assert np.isfinite(gains.sum() + costs.sum()), "finite"
    assert costs.min(initial=0.0) >= 0, "no negative cost"
    cheap, dear = _bracket(gains, costs, budget)
    between = np.flatnonzero(cheap != dear)
    settled = _total(costs, cheap)
    steps = _steps(gains[between], costs[between], cheap[between], dear[between])
    taken = int(np.searchsorted(np.cumsum(steps.cost), budget - settled + _rounding(budget), side="right"))
    arms = cheap
    arms[between[steps.row[:taken]]] = steps.arm[:taken]  # of several steps of one query, the last one stays
    price = float(steps.slope[taken]) if taken < len(steps.row) else 0.0
    left = budget - _total(costs, arms)
    bound = _total(gains, arms) + price * max(0.0, left)
    if taken < len(steps.row):
        rows = between if len(gains) <= FEW else between[steps.row[taken : taken + 1]]
        _use_up(gains, costs, arms, rows, left)
    return Allocation(
        arms=arms,
        price=price,
        cost=_total(costs, arms),
        gain=_total(gains, arms),
        bound=bound,
    )


def choices_at(gains: Floats, costs: Floats, price: float) -> Ints:
    """What each query is given at a price: the arm whose gain - price * cost is the largest, or nothing."""
    arms = np.empty(len(gains), np.int64)
    worth = np.empty((CHUNK, gains.shape[1]))
    for start in range(0, len(gains), CHUNK):
        rows = slice(start, min(start + CHUNK, len(gains)))
        value = np.multiply(costs[rows], -price, out=worth[: rows.stop - start])
        value += gains[rows]
        best = value.argmax(axis=1)
        idle = value[np.arange(len(best)), best] <= 0
        best[idle] = NOTHING
        arms[rows] = best
    return arms


def reasons(gains: Floats, costs: Floats, budget: float, arms: Ints) -> NDArray[np.int8]:
    """A `Reason` for each query."""
    why = np.full(len(arms), Reason.FUNDED, np.int8)
    idle = np.flatnonzero(arms == NOTHING)
    helps = gains[idle] > 0
    affordable = helps & (costs[idle] <= budget)
    why[idle] = np.where(affordable.any(axis=1), Reason.TOO_DEAR, Reason.UNAFFORDABLE)
    why[idle[~helps.any(axis=1)]] = Reason.HOPELESS
    return why


def in_words(price: float) -> str:
    """The shadow price, in correct answers per USD, as a sentence."""
    if price <= 0:
        return "One more dollar would buy nothing here: every query has all it can use."
    about = f"{price:.2g}" if price < MANY else f"{float(f'{price:.2g}'):,.0f}"
    return f"One more dollar buys about {about} more correct answers here."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Steps:
    """Steps along envelopes, the best first: from where the query stood, what `arm` adds to cost."""

    row: Ints
    arm: Ints
    cost: Floats
    slope: Floats


def _bracket(gains: Floats, costs: Floats, budget: float) -> tuple[Ints, Ints]:
    """What each query has at a price that is too high and at one that is too low: most have the same at both."""
    lowest = _lowest_price(gains, costs)
    if len(gains) <= FEW:
        return np.full(len(gains), NOTHING, np.int64), choices_at(gains, costs, lowest)
    guess = max(_guess(gains, costs, budget), lowest)
    low, high = max(lowest, guess / AROUND), guess * AROUND
    dear = choices_at(gains, costs, low)
    while low > lowest and _total(costs, dear) <= budget:
        high, low = low, max(lowest, low / FARTHER)
        dear = choices_at(gains, costs, low)
    cheap = choices_at(gains, costs, high)
    while _total(costs, cheap) > budget:
        low, high, dear = high, high * FARTHER, cheap
        cheap = choices_at(gains, costs, high)
    return _narrowed(gains, costs, budget, (cheap, high), (dear, low))


def _narrowed(
    gains: Floats, costs: Floats, budget: float, cheap: tuple[Ints, float], dear: tuple[Ints, float]
) -> tuple[Ints, Ints]:
    """The same with few queries that differ: the prices are halved among those, as long as that tells them apart."""
    (below, high), (above, low) = cheap, dear
    active = np.flatnonzero(below != above)
    settled = _total(costs, below)
    gains, costs = gains[active], costs[active]
    settled -= _total(costs, below[active])
    while len(active) > FEW:
        price = (low + high) / 2
        arms = choices_at(gains, costs, price)
        if settled + _total(costs, arms) > budget:
            low, above[active] = price, arms
        else:
            high, below[active] = price, arms
        still = below[active] != above[active]
        if still.mean() > TOLD_APART and high - low < SAME_PRICE * high:
            break
        settled += _total(costs[~still], below[active[~still]])
        active, gains, costs = active[still], gains[still], costs[still]
    return below, above


def _guess(gains: Floats, costs: Floats, budget: float) -> float:
    """The price of an evenly spread sample of the queries."""
    stride = -(-len(gains) // FEW)
    some = slice(None, None, stride)
    sample, cost = np.ascontiguousarray(gains[some]), np.ascontiguousarray(costs[some])
    return allocate(sample, cost, budget * len(sample) / len(gains)).price


def _lowest_price(gains: Floats, costs: Floats) -> float:
    """So low that it only decides between arms of equal gain."""
    most, dearest = float(gains.max(initial=0.0)), float(costs.max(initial=0.0))
    return max(most, 0.0) / dearest * SAME_SLOPE if dearest > 0 else 0.0


def _steps(gains: Floats, costs: Floats, start: Ints, end: Ints) -> _Steps:
    """All steps along the envelopes from one arm of each query to a dearer one, by slope."""
    rows = np.arange(len(gains))
    gain, cost, last = _picked(gains, start), _picked(costs, start), _picked(costs, end)
    found: list[tuple[Ints, Ints, Floats, Floats]] = []
    while len(rows):
        arm, slope = _next_vertex(gains, costs, gain, cost, last)
        moves = slope > 0
        rows, arm, slope = rows[moves], arm[moves], slope[moves]
        gains, costs, last = gains[moves], costs[moves], last[moves]
        reached = _picked(costs, arm)
        found.append((rows, arm, reached - cost[moves], slope))
        gain, cost = _picked(gains, arm), reached
    row, taken, added, slopes = (np.concatenate(parts) if parts else np.zeros(0) for parts in _columns(found))
    # A query's own steps come in the order of their slopes; a stable sort keeps them so where slopes are equal.
    order = np.argsort(-slopes, kind="stable")
    return _Steps(
        row=row[order].astype(np.int64), arm=taken[order].astype(np.int64), cost=added[order], slope=slopes[order]
    )


def _columns(found: list[tuple[Ints, Ints, Floats, Floats]]) -> list[list[NDArray[np.generic]]]:
    return [[step[column] for step in found] for column in range(4)]


def _next_vertex(gains: Floats, costs: Floats, gain: Floats, cost: Floats, last: Floats) -> tuple[Ints, Floats]:
    """The arm with the steepest rise from where each query stands (the farthest of equals), and the slope."""
    rise, run = gains - gain[:, None], costs - cost[:, None]
    slope = np.full(gains.shape, -np.inf)
    rising = (rise > 0) & (costs <= last[:, None])
    np.divide(rise, run, out=slope, where=rising & (run > 0))
    slope[rising & (run <= 0)] = np.inf
    best = slope.max(axis=1, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        level = slope >= np.where(np.isinf(best), best, best * (1 - SAME_SLOPE))[:, None]
    arm = np.where(level, rise, -np.inf).argmax(axis=1)
    return arm, best


def _use_up(gains: Floats, costs: Floats, arms: Ints, rows: Ints, left: float) -> None:
    """Give the one query that gains most by it a dearer arm that still fits: its next step would not.

    It gains less than the step that did not fit, so a budget that pays for that step is never the worse one.
    """
    gain, cost = gains[rows] - _picked(gains, arms)[rows, None], costs[rows] - _picked(costs, arms)[rows, None]
    fitting = np.where(cost <= left, gain, 0.0)
    row, arm = np.unravel_index(int(fitting.argmax()), fitting.shape)
    if fitting[row, arm] > 0:
        arms[rows[row]] = arm


def _picked(values: Floats, arms: Ints) -> Floats:
    """The value of each query's arm; 0 for nothing."""
    if not len(arms):
        return np.zeros(0)
    places = np.arange(0, values.size, values.shape[1])
    places += arms
    picked = values.ravel().take(places, mode="wrap")  # the place before the first one is that of NOTHING, and unused
    picked[arms == NOTHING] = 0.0
    return picked


def _total(values: Floats, arms: Ints) -> float:
    return float(_picked(values, arms).sum())


def _rounding(budget: float) -> float:
    return 1e-12 * max(1.0, abs(budget))
