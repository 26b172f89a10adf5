"""Many samples and a vote over their answers: stop when the vote is settled."""

from __future__ import annotations

from collections import Counter

from scheduler.core.stopping import is_decided, is_settled, leader_holds, votes_to_settle
from scheduler.core.strategies.base import Steps, at_budget, draw
from scheduler.types import Outcome, Plan, Query, Sample


def self_consistency(query: Query, plan: Plan) -> Steps:
    """Draw up to n samples and return the most frequent answer; stop as soon as the vote is settled or decided.

    Samples in which no answer could be read cast no vote, but are drawn and paid for.
    """
    samples: tuple[Sample, ...] = ()
    while len(samples) < plan.samples_max:
        leader, runner_up = leading_votes(samples)
        if is_settled(leader, runner_up):
            return elect(samples, because="vote settled")
        left = plan.samples_max - len(samples)
        if is_decided(leader, runner_up, left):
            return elect(samples, because="vote decided")
        wave = 1 if not samples else votes_to_settle(leader, runner_up, votes_max=left)
        drawn = yield from draw(wave, plan.tokens_max)
        if not drawn:
            return elect(samples, because="vote cut short")
        samples += drawn
    return elect(samples, because=at_budget(query, "majority of all samples"))


def leading_votes(samples: tuple[Sample, ...]) -> tuple[int, int]:
    """The votes of the first and of the second answer; zero where there is none."""
    counts = [count for _, count in Counter(s.answer for s in samples if s.answer is not None).most_common(2)]
    first, second, *_ = [*counts, 0, 0]
    return first, second


def elect(samples: tuple[Sample, ...], *, because: str) -> Outcome:
    """Choose the first sample that gave the most frequent answer, or the first of all where nobody voted."""
    if not samples:
        return Outcome(chosen=None, because="nothing was generated")
    votes = Counter(s.answer for s in samples if s.answer is not None)
    if not votes:
        return Outcome(chosen=samples[0], because="no sample gave an answer that could be read", confidence=0.0)
    [(winner, _)] = votes.most_common(1)
    chosen = next(s for s in samples if s.answer == winner)
    return Outcome(chosen=chosen, because=because, confidence=leader_holds(*leading_votes(samples)))
