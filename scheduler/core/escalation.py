"""Which model to ask next: one hidden difficulty explains what every arm does with a query.

Each arm answers a query of difficulty z rightly with the chance sigmoid(slope * (-z) + ease), and takes more tokens the
harder it is. What the arms asked so far have done says how hard the query is, and so what the others would do with it.
Without a verifier agreement counts: two arms seldom err alike. A further arm is asked while what it is expected to add
is worth its cost at the price.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import NO_ANSWER, Ints

GRID = np.linspace(-3.0, 3.0, 25)
"""Difficulties looked at, in standard deviations of a normal distribution."""
ROUNDS = 40
"""Steps of expectation and maximisation; the figures stand still after about twenty."""
SLOPE, SLOPE_WEIGHT, EASE_WEIGHT = 1.5, 4.0, 0.2
"""What is believed of an arm before data: its slope, and how strongly (in observations at the middle)."""
ALIKE, ALIKE_WEIGHT = 0.1, 10.0
"""How often two wrong answers are the same before data, and how many pairs that belief is worth."""
COST_SAYS = 0.3
"""How much of what a cost seems to say of difficulty is believed: arms' costs share more than difficulty."""
STOP = -1
"""Ask no further arm."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArmsModel:
    """What A arms do with queries of each difficulty on the grid.

    `weight` (G,) is how frequent a difficulty is, `right` (G, A) the chance of a right answer, `cost` (G, A) the
    expected cost. `log_cost_mean` (G, A) and `log_cost_spread` (A,) say how likely an observed cost is. `alike` is the
    chance that a wrong answer equals another wrong one.
    """

    weight: Floats
    right: Floats
    cost: Floats
    log_cost_mean: Floats
    log_cost_spread: Floats
    alike: float


def fit_arms(right: NDArray[np.bool_], costs: Floats, answers: Ints) -> ArmsModel:
    """The model that makes what T queries showed under A arms most likely: all (T, A)."""
    log_cost = np.log(np.maximum(costs, 1e-12))
    weight = np.exp(-(GRID**2) / 2)
    weight /= weight.sum()
    ease, slope = np.zeros(right.shape[1]), np.full(right.shape[1], SLOPE)
    level, tilt, spread = log_cost.mean(axis=0), np.zeros(right.shape[1]), log_cost.std(axis=0) + 1e-3
    for _ in range(ROUNDS):
        chance = _sigmoid(ease - np.outer(GRID, slope))
        mean = level + np.outer(GRID, tilt)
        where = _posterior(weight, chance, (mean, spread), right, log_cost)
        ease, slope = _refit_chances(where, right, ease, slope)
        level, tilt, spread = _refit_costs(where, log_cost)
    chance, mean = _sigmoid(ease - np.outer(GRID, slope)), level + np.outer(GRID, tilt)
    expected = np.exp(mean + spread**2 / 2)
    observed = costs.mean(axis=0) / (weight @ expected)  # a logarithm's mean leaves heavy tails out
    return ArmsModel(
        weight=weight,
        right=chance,
        cost=expected * observed,
        log_cost_mean=mean,
        log_cost_spread=spread,
        alike=_alike(right, answers),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Standing:
    """n queries of which the same arms were asked, with answers that group alike.

    `joint` (n, H + 1, G) is the chance, together with all that was seen, that the right answer is that of group h (the
    last: none of them) and the difficulty that of the grid. `asked` names the arms.
    """

    joint: Floats
    asked: tuple[int, ...]

    @classmethod
    def fresh(cls, model: ArmsModel, queries: int) -> Standing:
        """Nothing asked yet."""
        return cls(joint=np.tile(model.weight, (queries, 1, 1)), asked=())

    @property
    def leading(self) -> Ints:
        """The group most likely to be right; 0 where there is none."""
        return np.asarray(self.joint[:, :-1].sum(axis=2).argmax(axis=1)) if self.joint.shape[1] > 1 else _zeros(self)

    @property
    def best(self) -> Floats:
        """The chance that the leading group is right, together with all that was seen."""
        groups = self.joint[:, :-1].sum(axis=2)
        return np.asarray(groups.max(axis=1, initial=0.0))


def answered(model: ArmsModel, standing: Standing, arm: int, group: int) -> Standing:
    """What is known after `arm` gave the answer of a group; NO_ANSWER where none could be read, H for a new one."""
    chance, joint = model.right[:, arm], standing.joint
    wrong = joint * (1 - chance)
    groups = joint.shape[1] - 1
    if group == NO_ANSWER:
        return Standing(joint=wrong, asked=(*standing.asked, arm))
    if group < groups:
        after = wrong * model.alike
        after[:, group] = joint[:, group] * chance
    else:
        fresh = 1 - model.alike * np.maximum(groups - 1, 0)
        after = np.concatenate([wrong[:, :-1] * fresh, joint[:, -1:] * chance, wrong[:, -1:] * fresh], axis=1)
    return Standing(joint=after, asked=(*standing.asked, arm))


def refused(model: ArmsModel, standing: Standing, arm: int) -> Standing:
    """What is known after a verifier refused the arm's answer."""
    return Standing(joint=standing.joint * (1 - model.right[:, arm]), asked=(*standing.asked, arm))


def at_cost(model: ArmsModel, standing: Standing, arm: int, costs: Floats) -> Standing:
    """What is known after the arm's cost (n,) was seen as well: a long answer speaks of a hard query."""
    apart = (np.log(np.maximum(costs, 1e-12))[:, None] - model.log_cost_mean[:, arm]) / model.log_cost_spread[arm]
    likely = np.exp(-COST_SAYS * apart**2 / 2)
    return Standing(joint=standing.joint * likely[:, None, :], asked=standing.asked)


def next_arm(model: ArmsModel, standing: Standing, price: float, *, judged: bool, depth: int) -> Ints:
    """The arm that each query should be asked of next, or STOP: the best of looking `depth` answers ahead."""
    stop = np.zeros(len(standing.joint)) if judged else standing.best
    best, choice = stop + 1e-12, np.full(len(stop), STOP)
    for arm in range(model.right.shape[1]):
        if arm in standing.asked:
            continue
        value = _value_of(model, standing, arm, price, judged=judged, depth=depth)
        choice, best = np.where(value > best, arm, choice), np.maximum(value, best)
    return choice


def _value_of(model: ArmsModel, standing: Standing, arm: int, price: float, *, judged: bool, depth: int) -> Floats:
    """The chance of a right answer in the end, less what it costs, if this arm is asked now."""
    cost = price * (standing.joint * model.cost[:, arm]).sum(axis=(1, 2))
    if judged:
        accepted = (standing.joint * model.right[:, arm]).sum(axis=(1, 2))
        return np.asarray(accepted - cost + _value(model, refused(model, standing, arm), price, True, depth - 1))
    groups = standing.joint.shape[1] - 1
    outcomes = (answered(model, standing, arm, group) for group in range(groups + 1))
    return np.asarray(sum(_value(model, after, price, False, depth - 1) for after in outcomes) - cost)


def _value(model: ArmsModel, standing: Standing, price: float, judged: bool, depth: int) -> Floats:
    best = np.zeros(len(standing.joint)) if judged else standing.best
    if depth > 0:
        for arm in range(model.right.shape[1]):
            if arm not in standing.asked:
                best = np.maximum(best, _value_of(model, standing, arm, price, judged=judged, depth=depth))
    return best


def _posterior(
    weight: Floats, chance: Floats, costs: tuple[Floats, Floats], right: NDArray[np.bool_], log_cost: Floats
) -> Floats:
    """(T, G) how likely each difficulty is for each query."""
    mean, spread = costs
    apart = (log_cost[:, None, :] - mean) / spread
    seen = np.where(right[:, None, :], np.log(chance), np.log(1 - chance)) - COST_SAYS * apart**2 / 2
    log_joint = np.log(weight) + seen.sum(axis=2)
    joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def _refit_chances(where: Floats, right: NDArray[np.bool_], ease: Floats, slope: Floats) -> tuple[Floats, Floats]:
    """One Newton step per arm of a logistic curve over the grid, held by its prior."""
    mass, hits = where.sum(axis=0), where.T @ right
    chance = _sigmoid(ease - np.outer(GRID, slope))
    miss = hits - mass[:, None] * chance
    curve = mass[:, None] * chance * (1 - chance)
    grad_ease = miss.sum(axis=0) - EASE_WEIGHT * ease
    grad_slope = -(GRID @ miss) - SLOPE_WEIGHT * (slope - SLOPE)
    h_ee, h_es, h_ss = curve.sum(axis=0) + EASE_WEIGHT, -(GRID @ curve), (GRID**2) @ curve + SLOPE_WEIGHT
    det = h_ee * h_ss - h_es**2
    return (
        ease + np.clip((h_ss * grad_ease - h_es * grad_slope) / det, -1, 1),
        np.maximum(slope + np.clip((h_ee * grad_slope - h_es * grad_ease) / det, -1, 1), 0.1),
    )


def _refit_costs(where: Floats, log_cost: Floats) -> tuple[Floats, Floats, Floats]:
    """A line of log-cost over difficulty per arm, and the spread around it."""
    mass = where.sum(axis=0)
    total, centre, square = mass.sum(), mass @ GRID, mass @ GRID**2
    mean, slanted = log_cost.mean(axis=0), (where @ GRID) @ log_cost
    tilt = (slanted - centre * mean) / (square - centre**2 / total + 1.0)
    level = mean - tilt * centre / total
    apart = log_cost[:, None, :] - (level + np.outer(GRID, tilt))
    spread = np.sqrt((where[:, :, None] * apart**2).sum(axis=(0, 1)) / total)
    return level, tilt, np.maximum(spread, 0.05)


def _alike(right: NDArray[np.bool_], answers: Ints) -> float:
    """How often two wrong, readable answers to one query are the same."""
    wrong = ~right & (answers != NO_ANSWER)
    both = wrong[:, :, None] & wrong[:, None, :] & ~np.eye(right.shape[1], dtype=bool)
    same = both & (answers[:, :, None] == answers[:, None, :])
    return float((same.sum() / 2 + ALIKE * ALIKE_WEIGHT) / (both.sum() / 2 + ALIKE_WEIGHT))


def _sigmoid(x: Floats) -> Floats:
    return np.clip(1 / (1 + np.exp(-x)), 1e-4, 1 - 1e-4)


def _zeros(standing: Standing) -> Ints:
    return np.zeros(len(standing.joint), np.int64)
