"""Accuracy against cost: whole frontiers, their intervals over queries, and how they compare at equal accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.simulation.replay import Replay

RESAMPLES = 500
"""Bootstrap resamples of the queries: the ends of a 95 % interval then move by about a tenth of its width."""
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A policy at one setting: means over queries and draws, and the accuracy's 95 % interval over queries."""

    label: str
    tokens_per_query: float
    usd_per_query: float | None
    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frontier:
    """A policy at all its settings, from cheap to dear; per query as (settings, Q)."""

    labels: tuple[str, ...]
    right: Floats
    tokens: Floats
    usd: Floats
    by_usd: bool = False

    @property
    def cost(self) -> Floats:
        """What policies are compared by: tokens, or USD where arms' tokens have different prices."""
        return self.usd if self.by_usd else self.tokens


def frontier(runs: Sequence[tuple[str, Replay]], *, by_usd: bool = False) -> Frontier:
    """The settings of one policy, from cheap to dear."""
    ordered = sorted(runs, key=lambda run: float((run[1].usd if by_usd else run[1].tokens).mean()))
    return Frontier(
        by_usd=by_usd,
        labels=tuple(label for label, _ in ordered),
        right=np.array([run.right for _, run in ordered]),
        tokens=np.array([run.tokens for _, run in ordered]),
        usd=np.array([run.usd for _, run in ordered]),
    )


def points(curve: Frontier, weights: Floats) -> list[Point]:
    """The frontier's points; `weights` are those of `resamples`."""
    accuracy = curve.right @ weights.T
    low, high = np.percentile(accuracy, INTERVAL, axis=1)
    usd = curve.usd.mean(axis=1)
    return [
        Point(
            label=label,
            tokens_per_query=float(curve.tokens[i].mean()),
            usd_per_query=None if np.isnan(usd[i]) else float(usd[i]),
            accuracy=float(curve.right[i].mean()),
            ci95=(float(low[i]), float(high[i])),
        )
        for i, label in enumerate(curve.labels)
    ]


def resamples(queries: int, seed: int) -> Floats:
    """Bootstrap weights of the queries: (RESAMPLES, Q), each row adds up to 1."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(queries, np.full(queries, 1 / queries), size=RESAMPLES) / queries


def ratios(curve: Frontier, baseline: Frontier, weights: Floats | None = None) -> Mapping[str, Floats]:
    """The baseline's cost at each of its settings over the policy's cost at equal accuracy.

    One number per resample where weights are given, else one for all queries. NaN where the policy does not reach that
    accuracy. Between two settings of the policy costs are interpolated; below the first one stands nothing spent,
    nothing right.
    """
    if weights is None:
        weights = np.full((1, curve.right.shape[1]), 1 / curve.right.shape[1])
    ours = zip(weights @ curve.cost.T, weights @ curve.right.T, strict=True)
    spent, targets = weights @ baseline.cost.T, weights @ baseline.right.T
    needed = np.array([_costs_of(_cheapest(*line), target) for line, target in zip(ours, targets, strict=True)])
    found = np.divide(spent, needed, out=np.full(spent.shape, np.nan), where=needed > 0)
    return {label: found[:, i] for i, label in enumerate(baseline.labels)}


def _cheapest(costs: Floats, right: Floats) -> tuple[Floats, Floats]:
    """The settings that no cheaper one equals, from nothing on: (costs, accuracies), both rising."""
    order = np.argsort(costs, kind="stable")
    costs, right = np.append(0.0, costs[order]), np.append(0.0, right[order])
    best = np.maximum.accumulate(right)
    rises = np.append(True, right[1:] > best[:-1])
    return costs[rises], right[rises]


EQUAL = 1e-9
"""Accuracies are sums of many numbers; what differs by less is equal."""


def _costs_of(line: tuple[Floats, Floats], targets: Floats) -> Floats:
    costs, right = line
    needed = np.interp(np.minimum(targets, right[-1]), right, costs)
    return np.where(targets > right[-1] + EQUAL, np.nan, needed)
