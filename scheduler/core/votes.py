"""What votes weigh, and what they are expected to reach: the chance that the right answer leads after n samples."""

from __future__ import annotations

import math

import numpy as np

from scheduler.core.beliefs import Floats

NODES = (np.arange(60) + 0.5) / 60
RIVAL_SHARE = 0.3
"""The share of wrong samples that agree on one wrong answer (about that of gsm8k-qwen05b and svamp-codex)."""
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def vote_weight(logprob_mean: float | None) -> float:
    """What a sample's vote counts in the election: the geometric mean of its tokens' probabilities.

    A sample without log-probabilities counts fully. (Confidence-informed self-consistency, arXiv 2502.06233, with the
    response's own probability as the confidence.)
    """
    return 1.0 if logprob_mean is None else math.exp(min(0.0, logprob_mean))


def vote_curve(alpha: Floats, beta: Floats, samples_max: int) -> Floats:
    """The chance that a vote of n samples elects the right answer, for n = 0..samples_max: (Q, samples_max + 1).

    The lead of the right answer over one rival is taken for normal, and averaged over what is not known of the chance
    that one sample is right. One vote or two elect whom the first one names.
    """
    wins = np.zeros((len(NODES), samples_max + 1))
    rival = (1 - NODES) * RIVAL_SHARE
    lead, spread = NODES - rival, np.sqrt(NODES + rival - (NODES - rival) ** 2)
    for n in range(1, samples_max + 1):
        wins[:, n] = NODES if n <= 2 else 0.5 * (1 + _ERF(math.sqrt(n / 2) * lead / spread))
    return np.maximum.accumulate(_weights(alpha, beta) @ wins, axis=1)


def _weights(alpha: Floats, beta: Floats) -> Floats:
    """How likely each node is under each Beta distribution."""
    log = (alpha[:, None] - 1) * np.log(NODES) + (beta[:, None] - 1) * np.log1p(-NODES)
    weights = np.exp(log - log.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
