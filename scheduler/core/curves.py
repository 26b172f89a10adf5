"""What more samples buy and cost: the chance of an accepted answer and the expected tokens, as a function of n."""

from __future__ import annotations

import numpy as np

from scheduler.core.beliefs import Floats


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


def tokens_until_accepted(alpha: Floats, beta: Floats, tokens_mean: Floats, samples_max: int) -> Floats:
    """The expected tokens of up to n samples that end at the first accepted one, for n = 0..samples_max."""
    none = chance_of_none(alpha, beta, samples_max)
    tokens = np.zeros_like(none)
    np.cumsum(none[:, :-1], axis=1, out=tokens[:, 1:])
    return tokens * tokens_mean[:, None]
