"""One sample, taken as it is."""

from __future__ import annotations

from scheduler.core.strategies.base import Steps, draw
from scheduler.types import Outcome, Plan, Query


def direct(_query: Query, plan: Plan) -> Steps:
    """Draw one sample and return it."""
    samples = yield from draw(1, plan.tokens_max)
    if not samples:
        return Outcome(chosen=None, because="nothing was generated")
    return Outcome(chosen=samples[0], because="the only sample")
