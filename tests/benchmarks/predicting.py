"""What predicting difficulty costs, from a thousand queries to a hundred thousand, with a predictor of full size."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace

from models.learned.facts import Facts
from models.learned.predictor import DifficultyPredictor
from models.learned.rates import KERNEL_ROWS_MAX
from tests.benchmarks.figures import Figure, print_figures
from tests.unit.models_learned.synthetic import synthetic

SIZES = (1_000, 10_000, 100_000)
GROWTH_MAX = 1.5
"""How much longer a query may take of a hundred thousand than of ten thousand, and how much more memory."""
WORDS = "Anna buys 12 pens at 3 euros each and sells half of them for 5 euros; how much is left of her 100 euros? "


def run() -> list[Figure]:
    """Fit once, predict all sizes; returns how the largest compares with the one before."""
    examples, _ = synthetic(KERNEL_ROWS_MAX, seed=1)
    began = time.perf_counter()
    predictor = DifficultyPredictor(with_embedding=False).fit(examples)
    print(f"\nfitting {len(examples)} queries: {time.perf_counter() - began:.1f} s")
    print(f"{'queries':<10}{'predict s':>12}{'peak MB':>10}")
    measured = []
    for queries in SIZES:
        facts = [replace(examples.facts[i % len(examples)], text=f"{WORDS}{i}") for i in range(queries)]
        seconds, peak = measure(predictor, facts)
        measured.append((seconds / queries, peak / queries))
        print(f"{queries:<10}{seconds:>12.2f}{peak / 1e6:>10.1f}")
    (_, tens, largest) = measured
    return [
        Figure(name="prediction per query, of 100k / of 10k", rounds=(largest[0] / tens[0],), at_most=GROWTH_MAX),
        Figure(name="prediction's memory per query, of 100k / of 10k", rounds=(largest[1] / tens[1],), at_most=1.5),
    ]


def measure(predictor: DifficultyPredictor, facts: list[Facts]) -> tuple[float, int]:
    """Seconds, and the most memory taken beside the facts themselves (of a second run, which is slower for it)."""
    began = time.perf_counter()
    predictor.beliefs(facts)
    seconds = time.perf_counter() - began
    tracemalloc.start()
    predictor.beliefs(facts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak


if __name__ == "__main__":
    print_figures(run())
