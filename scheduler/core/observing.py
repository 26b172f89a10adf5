"""What the samples of one query show so far, as rules over many queries see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.core.beliefs import belief_of_one
from scheduler.core.evidence import NO_ANSWER, Samples, Seen, see
from scheduler.core.lessons import leader_right, updated
from scheduler.core.said import FEATURES
from scheduler.types import Plan, Sample


def observed(samples: Sequence[Sample], accepted: Sequence[bool] | None = None) -> Seen:
    """The single cell (1,) that all of the samples make, without an election.

    `accepted` are a verifier's verdicts; None without one.
    """
    known: dict[str, int] = {}
    codes = [NO_ANSWER if one.answer is None else known.setdefault(one.answer, len(known)) for one in samples]
    logprobs = [np.nan if one.logprob_mean is None else one.logprob_mean for one in samples]
    seen = see(
        Samples(
            answers=np.array([codes], np.int64),
            tokens=np.array([[one.tokens for one in samples]], np.int64),
            logprob=np.array([logprobs], np.float64),
            truncated=np.array([[one.finish_reason == "length" for one in samples]], np.bool_),
            accepted=np.array([accepted or [False] * len(samples)], np.bool_),
            said=np.zeros((1, len(samples), len(FEATURES))),
        ),
        judged=accepted is not None,
        only_last=True,
    )
    return seen.take((slice(None), -1))


def believed_after(plan: Plan, failures: Sequence[Sample]) -> tuple[float, float]:
    """alpha and beta of the chance that one sample is right, after samples that a verifier refused."""
    if not failures or not plan.lessons.failing or plan.tokens_mean is None:
        return plan.alpha, plan.beta + len(failures)
    beliefs = belief_of_one(plan.alpha, plan.beta, plan.tokens_mean)
    evidence = observed(failures, [False] * len(failures)).evidence
    alpha, beta = updated(plan.lessons, beliefs, evidence)
    return float(alpha[0]), float(beta[0])


def chance_of_leader(plan: Plan, samples: Sequence[Sample]) -> float | None:
    """The learned chance that the leader of a vote is right; None where nothing was learned of it."""
    if not samples or not plan.lessons.leading or plan.tokens_mean is None:
        return None
    beliefs = belief_of_one(plan.alpha, plan.beta, plan.tokens_mean)
    return float(leader_right(plan.lessons, beliefs, observed(samples).evidence)[0])
