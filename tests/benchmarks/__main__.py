"""Runs every bench and prints a table of the ratios: `make bench`. Exits with 1 where a bar is missed."""

from __future__ import annotations

import sys

from tests.benchmarks import allocation, intake, money, planning, predicting, recovery, throughput
from tests.benchmarks.figures import print_figures


def main() -> int:
    """The cheap ones first; the one with a real model last."""
    figures = [
        *allocation.run(),
        *predicting.run(),
        *intake.run(),
        *planning.run(),
        *money.run(),
        *recovery.run(),
        *throughput.run(),
    ]
    print_figures(figures)
    return 0 if all(figure.is_met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
