"""How a cap lasts its period: the price rises when money goes faster than time, and falls when it would be left over.

Dual mirror descent (Balseiro, Lu, Mirrokni 2020) in its multiplicative form. What is due
follows from what is left of the period, so that errors of the past are made up for. The cap itself is kept by the
ledger, never by the price.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, sqrt

STEP = 2.0
"""How strongly the price answers to a window that cost all of what a typical one may cost, at the first window."""
STEP_MIN = 0.2
"""The answer never falls below this, as the work that comes in changes through the day."""
PUSH_MAX = 1.0
"""At most e-fold up or down at once: one odd window must not close or open the purse."""
FLOOR, CEILING = 1e-15, 1e3
"""Bounds of a price in right answers per nano-dollar: none of them is met in practice, and no price is ever 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """A tenant's price in one period, and how many windows it has seen."""

    price: float
    windows: int = 0


def due(left_nanousd: int, seconds_left: float, window_s: float) -> float:
    """What a window of this length may cost, so that what is left of a cap lasts its period evenly."""
    if seconds_left <= window_s:
        return float(max(0, left_nanousd))
    return max(0, left_nanousd) * window_s / seconds_left


def paced(pace: Pace, *, spent_nanousd: float, due_nanousd: float) -> Pace:
    """The price after a window that spent this where that was due.

    price * exp(step * (spent - due) / due): a window that costs twice its due moves the price as much up as one that
    costs nothing moves it down.
    """
    if due_nanousd <= 0:
        return replace(pace, price=min(CEILING, pace.price * exp(PUSH_MAX)), windows=pace.windows + 1)
    step = max(STEP_MIN, STEP / sqrt(pace.windows + 1))
    push = max(-PUSH_MAX, min(PUSH_MAX, step * (spent_nanousd - due_nanousd) / due_nanousd))
    return Pace(price=min(CEILING, max(FLOOR, pace.price * exp(push))), windows=pace.windows + 1)
