"""Runs every bench and prints a table of the ratios: `make bench`. Exits with 1 where a bar is missed."""

from __future__ import annotations

import sys

from tests.benchmarks import allocation, intake, money, planning, predicting, recovery, throughput
from tests.benchmarks.figures import Figure, print_figures


def main() -> int:
    """The cheap ones first; the one with a real model last."""
    figures = [
        *allocation.run(),
        *predicting.run(),
        intake_figure(),
        *planning.run(),
        *money.run(),
        *recovery.run(),
        *throughput.run(),
    ]
    print_figures(figures)
    return 0 if all(figure.is_met for figure in figures) else 1


def intake_figure() -> Figure:
    """The ratio of the largest file, of which there is one round: `measure` takes the best of several itself."""
    print(f"{'lines':<8}{'us/line':>10}{'baseline us/line':>18}{'ratio':>8}{'peak MB':>9}")
    for lines in intake.SIZES:
        measured = intake.measure(lines)
        us = [seconds / lines * 1e6 for seconds in (measured.intake_s, measured.baseline_s)]
        print(f"{lines:<8}{us[0]:>10.1f}{us[1]:>18.1f}{measured.ratio:>8.2f}{measured.peak_bytes / 1e6:>9.1f}")
    name = f"intake of {lines // 1000}k lines / parsing and inserting the same rows"
    return Figure(name=name, rounds=(measured.ratio,), at_least=intake.RATIO_MIN)


if __name__ == "__main__":
    sys.exit(main())
