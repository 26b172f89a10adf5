"""Many samples and a vote over their answers: stop when the vote is settled, or not worth another sample."""

from __future__ import annotations

from collections import Counter, defaultdict

from scheduler.core.stopping import is_decided, is_settled, is_vote_worth, leader_holds, votes_to_settle
from scheduler.core.strategies.base import Steps, at_budget, draw
from scheduler.core.votes import vote_weight
from scheduler.types import Outcome, Plan, Query, Sample


def self_consistency(query: Query, plan: Plan) -> Steps:
    """Draw up to n samples and elect an answer; stop as soon as the vote is settled or decided.

    Samples in which no answer could be read cast no vote, but are drawn and paid for. Where money is scarce, stop as
    soon as the chance that more samples turn the vote into a right one is not worth the price.
    """
    samples: tuple[Sample, ...] = ()
    while len(samples) < plan.samples_max:
        leader, runner_up = leading_votes(samples)
        if is_settled(leader, runner_up):
            return elect(samples, because="vote settled")
        left = plan.samples_max - len(samples)
        if is_decided(leader, runner_up, left):
            return elect(samples, because="vote decided")
        others = len(samples) - leader - runner_up
        in_a_wave_of_its_own = plan.price * (plan.prompt_nanousd + plan.sample_nanousd)
        if samples and not is_vote_worth((leader, runner_up, others), left, _rate(plan), in_a_wave_of_its_own):
            return elect(samples, because="one more sample is not worth its price")
        wave = votes_to_settle(leader, runner_up, votes_max=left) if samples else _first_wave(plan)
        drawn = yield from draw(wave, plan.tokens_max)
        if not drawn:
            return elect(samples, because="vote cut short")
        samples += drawn
    return elect(samples, because=at_budget(query, "majority of all samples"))


def _first_wave(plan: Plan) -> int:
    """The samples that would be asked for even if all of them agreed: together they pay the prompt once."""
    most = votes_to_settle(0, 0, votes_max=plan.samples_max)
    for wave in range(1, most):
        if not is_vote_worth((wave, 0, 0), plan.samples_max - wave, _rate(plan), plan.price * plan.sample_nanousd):
            return wave
    return most


def _rate(plan: Plan) -> float:
    return plan.alpha / (plan.alpha + plan.beta)


def leading_votes(samples: tuple[Sample, ...]) -> tuple[int, int]:
    """The votes of the first and of the second answer; zero where there is none."""
    counts = [count for _, count in Counter(s.answer for s in samples if s.answer is not None).most_common(2)]
    first, second, *_ = [*counts, 0, 0]
    return first, second


def elect(samples: tuple[Sample, ...], *, because: str) -> Outcome:
    """Choose the first sample that gave the answer whose votes weigh most, or the first of all where nobody voted.

    Each vote weighs what its sample's probability is, so that of answers with as many votes the surer one is elected.
    The confidence is that of the winner against the answer with most votes among the others.
    """
    if not samples:
        return Outcome(chosen=None, because="nothing was generated")
    votes = Counter(s.answer for s in samples if s.answer is not None)
    if not votes:
        return Outcome(chosen=samples[0], because="no sample gave an answer that could be read", confidence=0.0)
    weights: dict[str, float] = defaultdict(float)
    for sample in samples:
        if sample.answer is not None:
            weights[sample.answer] += vote_weight(sample.logprob_mean)
    winner = max(weights, key=lambda answer: weights[answer])
    chosen = next(s for s in samples if s.answer == winner)
    rival = max((count for answer, count in votes.items() if answer != winner), default=0)
    return Outcome(chosen=chosen, because=because, confidence=leader_holds(votes[winner], rival))
