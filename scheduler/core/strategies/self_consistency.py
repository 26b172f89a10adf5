"""Many samples and a vote over their answers: stop when the vote is settled, or not worth another sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from scheduler.core.beliefs import Floats
from scheduler.core.observing import chance_of_leader
from scheduler.core.said import said, vote_weights
from scheduler.core.stopping import SETTLED_AT, is_decided, is_settled, is_vote_worth, leader_holds, votes_to_settle
from scheduler.core.strategies.base import Steps, at_budget, draw
from scheduler.types import Outcome, Plan, Query, Sample


def self_consistency(query: Query, plan: Plan) -> Steps:
    """Draw up to n samples and elect an answer; stop as soon as the vote is settled or decided.

    A vote is settled at a certainty of 0.95, or at the setting (`self_consistency@0.8`). Samples in which no answer
    could be read cast no vote, but are drawn and paid for. Where money is scarce, stop as
    soon as the chance that more samples turn the vote into a right one is not worth the price.
    """
    samples: tuple[Sample, ...] = ()
    while len(samples) < plan.samples_max:
        leader, runner_up = leading_votes(samples)
        if is_settled(leader, runner_up, _settled_at(plan)):
            return elect_weighed(query, plan, samples, because="vote settled")
        left = plan.samples_max - len(samples)
        if is_decided(leader, runner_up, left):
            return elect_weighed(query, plan, samples, because="vote decided")
        votes = leader, runner_up, len(samples) - leader - runner_up
        in_a_wave_of_its_own = plan.price * (plan.prompt_nanousd + plan.sample_nanousd)
        if samples and not is_vote_worth(votes, left, _rate(plan), in_a_wave_of_its_own):
            return elect_weighed(query, plan, samples, because="one more sample is not worth its price")
        drawn = yield from draw(_next_wave(plan, votes, left), plan.tokens_max)
        if not drawn:
            return elect_weighed(query, plan, samples, because="vote cut short")
        samples += drawn
    return elect_weighed(query, plan, samples, because=at_budget(query, "majority of all samples"))


def _next_wave(plan: Plan, votes: tuple[int, int, int], left: int) -> int:
    """The samples that are asked for even if all of them vote for the leader: together they pay the prompt once."""
    leader, runner_up, others = votes
    most = votes_to_settle(leader, runner_up, votes_max=left, settled_at=_settled_at(plan))
    for wave in range(1, most if plan.price > 0 else 1):
        after = leader + wave, runner_up, others
        if not is_vote_worth(after, left - wave, _rate(plan), plan.price * plan.sample_nanousd):
            return wave
    return most


def _settled_at(plan: Plan) -> float:
    return SETTLED_AT if plan.arm.setting is None else plan.arm.setting


def _rate(plan: Plan) -> float:
    return plan.alpha / (plan.alpha + plan.beta)


def leading_votes(samples: tuple[Sample, ...]) -> tuple[int, int]:
    """The votes of the first and of the second answer; zero where there is none."""
    counts = [count for _, count in Counter(s.answer for s in samples if s.answer is not None).most_common(2)]
    first, second, *_ = [*counts, 0, 0]
    return first, second


def elect_weighed(query: Query, plan: Plan, samples: tuple[Sample, ...], *, because: str) -> Outcome:
    """Elect an answer by votes that weigh, and as sure of it, as was learned from earlier ones."""
    shown = said(
        query.text if plan.lessons.voting else "",  # the plain rule looks at no answer
        [one.answer for one in samples],
        [one.tokens for one in samples],
        [one.logprob_mean for one in samples],
        [one.finish_reason == "length" for one in samples],
    )
    return elect(samples, vote_weights(plan.lessons, shown), because=because, sure=chance_of_leader(plan, samples))


def elect(
    samples: tuple[Sample, ...], weights: Sequence[float] | Floats, *, because: str, sure: float | None = None
) -> Outcome:
    """Choose the first sample that gave the answer whose votes weigh most, or the first of all where nobody voted.

    `weights` are what each sample's vote counts. The confidence is `sure`, that of the most frequent answer, where
    it is known and that answer elected; else that of the winner against the answer with most votes among the others.
    """
    if not samples:
        return Outcome(chosen=None, because="nothing was generated")
    votes = Counter(s.answer for s in samples if s.answer is not None)
    if not votes:
        return Outcome(chosen=samples[0], because="no sample gave an answer that could be read", confidence=0.0)
    weighed: dict[str, float] = defaultdict(float)
    for sample, weight in zip(samples, weights, strict=True):
        if sample.answer is not None:
            weighed[sample.answer] += float(weight)
    winner = max(weighed, key=lambda answer: weighed[answer])
    chosen = next(s for s in samples if s.answer == winner)
    rival = max((count for answer, count in votes.items() if answer != winner), default=0)
    leads = votes[winner] > rival
    confidence = sure if sure is not None and leads else leader_holds(votes[winner], rival)
    return Outcome(chosen=chosen, because=because, confidence=confidence)
