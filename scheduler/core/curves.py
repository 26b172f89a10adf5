"""What more samples buy and cost: the chance of an accepted answer and the expected tokens, as a function of n."""

from __future__ import annotations

import numpy as np

from scheduler.core.beliefs import Floats

RIVAL = 0.5
"""The strongest wrong answer's share of the wrong ones: about half on rg-qwen05b."""


def chance_of_none(alpha: Floats, beta: Floats, samples_max: int) -> Floats:
    """The chance that n samples are all wrong, for n = 0..samples_max: (Q, samples_max + 1).

    E[(1 - p)^n] for p ~ Beta(alpha, beta) is prod_{j<n} (beta + j) / (alpha + beta + j): the expectation over what is
    not known of p, not the power of an expected p, which would promise too much.
    """
    j = np.arange(samples_max, dtype=np.float64)
    failing = (beta[:, None] + j) / (alpha[:, None] + beta[:, None] + j)
    none = np.ones((len(alpha), samples_max + 1))
    np.cumprod(failing, axis=1, out=none[:, 1:])
    return none


def best_of_n(alpha: Floats, beta: Floats, samples_max: int) -> Floats:
    """The chance that one of n samples is accepted, for n = 0..samples_max."""
    return 1.0 - chance_of_none(alpha, beta, samples_max)


def vote_of_n(alpha: Floats, beta: Floats, samples_max: int, rival: float = RIVAL) -> Floats:
    """The chance that the right answer leads a vote of n samples, for n = 0..samples_max; half of a tie's.

    Right votes are beta-binomial. The strongest wrong answer is taken to have the share `rival` of the others.
    """
    leads = np.zeros((len(alpha), samples_max + 1))
    log_gamma = np.array([0.0, 0.0, *np.cumsum(np.log(np.arange(1, samples_max + 1)))])  # of 1, 1, 2, ..., n
    for n in range(1, samples_max + 1):
        right = np.arange(n + 1)
        chance = np.exp(
            (log_gamma[n + 1] - log_gamma[right + 1] - log_gamma[n - right + 1])
            + _log_rising(alpha, n)[:, right]
            + _log_rising(beta, n)[:, n - right]
            - _log_rising(alpha + beta, n)[:, [n]]
        )
        against = rival * (n - right)
        leads[:, n] = chance @ np.where(right > against, 1.0, np.where((right == against) & (right > 0), 0.5, 0.0))
    return leads


def _log_rising(start: Floats, most: int) -> Floats:
    """log(start (start + 1) ... (start + k - 1)) for k = 0..most: (Q, most + 1)."""
    logs = np.zeros((len(start), most + 1))
    np.cumsum(np.log(start[:, None] + np.arange(most)), axis=1, out=logs[:, 1:])
    return logs


def tokens_until_accepted(alpha: Floats, beta: Floats, tokens_mean: Floats, samples_max: int) -> Floats:
    """The expected tokens of up to n samples that end at the first accepted one, for n = 0..samples_max."""
    none = chance_of_none(alpha, beta, samples_max)
    tokens = np.zeros_like(none)
    np.cumsum(none[:, :-1], axis=1, out=tokens[:, 1:])
    return tokens * tokens_mean[:, None]
