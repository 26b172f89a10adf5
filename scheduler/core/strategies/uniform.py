"""The same number of samples for every query, whatever they show: what adaptive budgets are compared with."""

from __future__ import annotations

from scheduler.core.strategies.base import Steps, at_budget, draw, reward
from scheduler.core.strategies.best_of_n import VERIFIED
from scheduler.core.strategies.self_consistency import elect_weighed
from scheduler.types import Outcome, Plan, Query, Sample


def uniform(query: Query, plan: Plan) -> Steps:
    """Draw all samples at once; keep the one the verifier likes best, or the most frequent answer without one."""
    samples: tuple[Sample, ...] = ()
    while len(samples) < plan.samples_max:
        drawn = yield from draw(plan.samples_max - len(samples), plan.tokens_max)
        if not drawn:
            break
        samples += drawn
    if not samples or query.verifier is None or not query.verifier.can_judge:
        return elect_weighed(query, plan, samples, because=at_budget(query, "majority of all samples"))
    rewards = yield from reward(samples)
    best = max(rewards)
    because = "verified" if best >= VERIFIED else "highest outcome reward"
    return Outcome(chosen=samples[rewards.index(best)], because=because, confidence=best)
