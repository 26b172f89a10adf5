"""A figure of a bench: what was measured, over how many rounds it was spread, and what it is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One ratio, measured in several rounds of one run, and the bar it must reach or stay under."""

    name: str
    rounds: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    @property
    def is_met(self) -> bool:
        """Whether the median is on the right side of the bar."""
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        return above and below

    @property
    def bar(self) -> str:
        """The bar as people write it; empty where there is none."""
        if self.at_least is None and self.at_most is None:
            return ""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


def print_figures(figures: Sequence[Figure]) -> None:
    """A table of ratios."""
    width = max(len(figure.name) for figure in figures)
    print(f"\n{'ratio':<{width}} {'median':>8} {'rounds':>17} {'bar':>8}")
    for figure in figures:
        spread = f"{min(figure.rounds):.3f} .. {max(figure.rounds):.3f}"
        verdict = "" if figure.is_met else "  missed"
        print(f"{figure.name:<{width}} {figure.value:>8.3f} {spread:>17} {figure.bar:>8}{verdict}")
