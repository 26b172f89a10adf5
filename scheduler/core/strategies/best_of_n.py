"""Many samples and a verifier: stop at the first one it accepts, or where one more is not worth its price."""

from __future__ import annotations

from scheduler.core.observing import believed_after
from scheduler.core.strategies.base import Steps, at_budget, draw, growing_wave, reward
from scheduler.core.waves import next_wave
from scheduler.types import Outcome, Plan, Query, Sample

VERIFIED = 1.0
"""The outcome reward at which a verifier has accepted a sample; a reward model's score stays below it."""


def best_of_n(query: Query, plan: Plan) -> Steps:
    """Draw up to n samples and keep the one the verifier likes best; stop at the first it accepts.

    Waves are as large as is cheapest: the longer a prompt beside its answers, the more samples share it. Where money is
    scarce, stop as soon as what the failures leave of the chance of success is not worth the price; where it is not,
    waves grow besides, so that many of them do not keep a query waiting.
    """
    best: Sample | None = None
    best_reward = -1.0
    refused: tuple[Sample, ...] = ()
    while (drawn := len(refused)) < plan.samples_max:
        alpha, beta = believed_after(plan, refused)
        wave = next_wave(
            alpha,
            beta,
            prompt_cost=plan.prompt_nanousd,
            sample_cost=plan.sample_nanousd,
            samples_max=plan.samples_max - drawn,
            price=plan.price,
            at_least=1 if plan.price > 0 else growing_wave(drawn, plan.samples_max),
        )
        if drawn and not wave:
            return Outcome(chosen=best, because="one more sample is not worth its price", confidence=best_reward)
        samples = yield from draw(max(1, wave), plan.tokens_max)
        if not samples:
            break
        refused += samples
        rewards = yield from reward(samples)
        for sample, value in zip(samples, rewards, strict=True):
            if value > best_reward:
                best, best_reward = sample, value
        if best_reward >= VERIFIED:
            return Outcome(chosen=best, because="verified", confidence=1.0)
    if best is None:
        return Outcome(chosen=None, because="nothing was generated")
    return Outcome(chosen=best, because=at_budget(query, "highest outcome reward"), confidence=best_reward)
