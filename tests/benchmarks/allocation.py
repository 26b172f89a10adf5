"""What allocating a budget costs, from a thousand queries to a million, with sixteen arms each."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass
from statistics import median

import numpy as np

from scheduler.core.allocation import Allocation, allocate
from scheduler.core.beliefs import Floats
from scheduler.core.curves import best_of_n, tokens_until_accepted
from tests.benchmarks.figures import Figure, print_figures

SIZES = (1_000, 10_000, 100_000, 1_000_000)
ARMS = 16
BUDGETS = (0.02, 0.1, 0.3, 0.6, 0.9)
"""Rounds: parts of what all queries could use."""
SORTS_MAX = 3.0
"""Times as long as numpy sorts as many items."""
GROWTH_MAX = 2.0
"""How much longer a query may take of a million than of ten thousand: n log n allows 1.5, and caches end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds of each round beside those of a sort, and the most memory taken beside the arms themselves."""

    queries: int
    seconds: tuple[float, ...]
    sort_seconds: tuple[float, ...]
    peak_bytes: int
    gap: float


def run() -> list[Figure]:
    """Measure all sizes; returns the figures of the largest."""
    measured = [measure(queries) for queries in SIZES]
    print(f"\n{'queries':<10}{'arms':>6}{'allocate s':>12}{'sort s':>9}{'ratio':>8}{'peak MB':>10}{'gap':>10}")
    for m in measured:
        seconds, sort = median(m.seconds), median(m.sort_seconds)
        peak = m.peak_bytes / 1e6
        print(f"{m.queries:<10}{ARMS:>6}{seconds:>12.4f}{sort:>9.4f}{seconds / sort:>8.2f}{peak:>10.1f}{m.gap:>10.2e}")
    largest, tens = measured[-1], measured[1]
    per_query = tuple(s / largest.queries / (median(tens.seconds) / tens.queries) for s in largest.seconds)
    memory = largest.peak_bytes / largest.queries / (tens.peak_bytes / tens.queries)
    ratios = tuple(s / t for s, t in zip(largest.seconds, largest.sort_seconds, strict=True))
    return [
        Figure(name=f"allocating 1M x {ARMS} / sorting {ARMS}M numbers", rounds=ratios, at_most=SORTS_MAX),
        Figure(name="allocation per query, of 1M / of 10k", rounds=per_query, at_most=GROWTH_MAX),
        Figure(name="allocation's memory per query, of 1M / of 10k", rounds=(memory,), at_most=1.5),
    ]


def measure(queries: int) -> Measured:
    """Allocate each of the budgets, and sort as many numbers beside."""
    gains, costs = workload(queries)
    whole = float(costs[:, -1].sum())
    allocate(gains, costs, 0.5 * whole)  # pages touched, code warm
    seconds, sorts, gaps = [], [], []
    for part in BUDGETS:
        began = time.perf_counter()
        found: Allocation = allocate(gains, costs, part * whole)
        seconds.append(time.perf_counter() - began)
        gaps.append(found.gap / found.gain)
        began = time.perf_counter()
        np.sort(gains, axis=None)
        sorts.append(time.perf_counter() - began)
    tracemalloc.start()
    allocate(gains, costs, 0.3 * whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Measured(queries=queries, seconds=tuple(seconds), sort_seconds=tuple(sorts), peak_bytes=peak, gap=max(gaps))


def workload(queries: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Curves of 1..16 samples of queries as they come: from hopeless to easy, short to long."""
    rng = np.random.default_rng(seed)
    alpha, beta = rng.gamma(1.0, 1.0, queries) + 0.05, rng.gamma(2.0, 1.0, queries) + 0.1
    tokens = rng.gamma(4.0, 50.0, queries) + 1
    gains, costs = best_of_n(alpha, beta, ARMS), tokens_until_accepted(alpha, beta, tokens, ARMS)
    return np.ascontiguousarray(gains[:, 1:]), np.ascontiguousarray(costs[:, 1:])


if __name__ == "__main__":
    print_figures(run())
