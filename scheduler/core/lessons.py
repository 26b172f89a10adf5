"""What earlier samples taught: how far failures move a belief, and how often the leader of a vote is right.

Both are linear in what samples show, so a few numbers hold them: a worker needs no fitted estimator, and the simulator
weighs the same evidence in the same way.
"""

from __future__ import annotations

import numpy as np

from scheduler.core.beliefs import Beliefs, Evidence, Floats
from scheduler.types import Lessons

RATE_MIN, RATE_MAX = 0.01, 0.99
"""No features of a query make its success sure or hopeless; samples may."""
WORTH_LOG_MAX = 2.0
"""A prior is worth at most e^2 times more or less than it said, whatever failures seemed to teach."""


def updated(lessons: Lessons, beliefs: Beliefs, evidence: Evidence) -> tuple[Floats, Floats]:
    """alpha and beta of the chance that one sample is right, given that all samples so far failed.

    One cell per cell of `evidence`, whose first axis is that of `beliefs`. Counts alone leave alpha as it is and add
    the failures to beta.
    """
    if not lessons.failing:
        alpha, beta = (_as_rows(prior, evidence) for prior in (beliefs.alpha, beliefs.beta))
        return np.broadcast_to(alpha, evidence.failures.shape).copy(), beta + evidence.failures
    odds = _as_rows(logit(beliefs.rate), evidence) + shown(beliefs, evidence, lessons.logprob_usual) @ lessons.failing
    factor = np.exp(np.clip(lessons.worth_log, -WORTH_LOG_MAX, WORTH_LOG_MAX))
    rate, worth = expit(odds), _as_rows(beliefs.concentration, evidence) * factor
    return rate * worth, (1 - rate) * worth + evidence.failures


def next_right(lessons: Lessons, beliefs: Beliefs, evidence: Evidence) -> Floats:
    """The chance that the next sample is right, given that none has been accepted so far."""
    alpha, beta = updated(lessons, beliefs, evidence)
    return np.asarray(alpha / (alpha + beta))


def leader_right(lessons: Lessons, beliefs: Beliefs, evidence: Evidence) -> Floats:
    """The chance that the most frequent answer so far is right; 0 where no sample has an answer."""
    if lessons.leading:
        chance = expit(lessons.leading[0] + voted(beliefs, evidence, lessons.logprob_usual) @ lessons.leading[1:])
    else:
        alpha, beta = (_as_rows(prior, evidence) for prior in (beliefs.alpha, beliefs.beta))
        chance = (alpha + evidence.leader) / (alpha + beta + evidence.samples)
    return np.where(evidence.leader > 0, chance, 0.0)


def shown(beliefs: Beliefs, evidence: Evidence, logprob_usual: float) -> Floats:
    """(..., 6) means over the samples so far, each a feature of about unit size, drawn to 0 where samples are few.

    Length against the expected one, log-probability against the usual one, and the shares of samples that were cut, had
    no answer, voted for the leader, and were first with their answer.
    """
    drawn = evidence.samples
    many = np.maximum(drawn, 1)
    weight = drawn / (drawn + 1)
    usual = _as_rows(beliefs.tokens_mean, evidence)
    length = np.where(drawn > 0, np.log(np.maximum(evidence.tokens / many, 1) / np.maximum(usual, 1)), 0.0)
    sure = np.where(
        evidence.logprob_known > 0, evidence.logprob / np.maximum(evidence.logprob_known, 1) - logprob_usual, 0.0
    )
    votes = np.maximum(drawn - evidence.unreadable, 1)
    shares = (
        evidence.truncated / many,
        evidence.unreadable / many,
        evidence.leader / votes,
        evidence.distinct / votes,
    )
    features = (3 * np.clip(length, -1, 1), 5 * np.clip(sure, -1, 1), *shares)
    return np.stack([weight * one for one in features], axis=-1)


def voted(beliefs: Beliefs, evidence: Evidence, logprob_usual: float) -> Floats:
    """(..., 12) what a vote shows beside its samples: the prior's log-odds, how many voted, and how far one leads."""
    drawn = np.maximum(evidence.samples, 1)
    share = evidence.leader / drawn
    lead = (evidence.leader - evidence.runner_up) / np.sqrt(evidence.leader + evidence.runner_up + 1)
    prior = np.broadcast_to(_as_rows(logit(beliefs.rate), evidence), drawn.shape)
    votes = np.stack([prior, np.log(drawn), share, lead, evidence.runner_up / drawn, share**2], axis=-1)
    return np.concatenate([votes, shown(beliefs, evidence, logprob_usual)], axis=-1)


def logit(rates: Floats) -> Floats:
    """Log-odds, of rates kept off 0 and 1."""
    kept = np.clip(rates, RATE_MIN, RATE_MAX)
    return np.asarray(np.log(kept / (1 - kept)))


def expit(log_odds: Floats) -> Floats:
    """The rate of log-odds."""
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def _as_rows(prior: Floats, evidence: Evidence) -> Floats:
    """A prior's column, with as many axes as the evidence has."""
    return prior.reshape(prior.shape + (1,) * (evidence.samples.ndim - 1))
