"""What votes weigh, and what they are expected to reach: the chance that the right answer leads after n samples."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Bools
from scheduler.core.stopping import is_settled, votes_to_settle
from scheduler.core.waves import split_vote_waves

NODES = (np.arange(60) + 0.5) / 60
RIVAL_SHARE = 0.3
"""The share of wrong samples that agree on one wrong answer (about that of gsm8k-qwen05b and svamp-codex)."""
RIVALS = (1 - NODES) * RIVAL_SHARE
EXACT_MAX = 48
"""Votes are counted up to so many samples; by then the lead is as good as normal, and hardly any more votes settle."""
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def vote_weight(logprob_mean: float | None) -> float:
    """What a sample's vote counts in the election: the geometric mean of its tokens' probabilities.

    A sample without log-probabilities counts fully. (Confidence-informed self-consistency, arXiv 2502.06233, with the
    response's own probability as the confidence.)
    """
    return 1.0 if logprob_mean is None else math.exp(min(0.0, logprob_mean))


def vote_curve(alpha: Floats, beta: Floats, samples_max: int) -> Floats:
    """The chance that a vote of n samples elects the right answer, for n = 0..samples_max: (Q, samples_max + 1).

    Averaged over what is not known of the chance that one sample is right. More votes are taken to do no harm.
    """
    elected, _ = _votes(samples_max)
    return np.maximum.accumulate(_weights(alpha, beta) @ elected, axis=1)


def vote_costs(alpha: Floats, beta: Floats, prompt_cost: Floats, sample_cost: Floats, samples_max: int) -> Floats:
    """What votes of up to n samples are expected to cost that end when they are settled, for n = 0..samples_max.

    (Q, samples_max + 1). Beyond the first wave, waves are taken to be as many as samples are: a part of those of a vote
    that is split to the end.
    """
    drawn = _weights(alpha, beta) @ _votes(samples_max)[1]
    n = np.arange(samples_max + 1)
    first = np.minimum(n, votes_to_settle(0, 0, votes_max=EXACT_MAX))
    further = np.maximum(split_vote_waves(samples_max) - 1, 0) * (drawn - first) / np.maximum(n - first, 1)
    waves = np.where(n > 0, 1 + further, 0)
    return np.maximum.accumulate(waves * prompt_cost[:, None] + drawn * sample_cost[:, None], axis=1)


@cache
def _votes(samples_max: int) -> tuple[Floats, Floats]:
    """How often a vote of up to n samples elects the right answer, and how many samples it takes until it is settled.

    Both (nodes, samples_max + 1), at each node; remembered, so not to be changed. A sample is right, agrees with the
    one rival, or says what nobody else does; of answers with as many votes any may have been the first. Up to EXACT_MAX
    samples this is counted; beyond, the lead over the rival is taken for normal, and no more votes to settle. That the
    last votes are not drawn where they could change nothing is not counted.
    """
    exact = min(samples_max, EXACT_MAX)
    wins, is_open = _wins(exact), _are_open(exact)
    every = np.zeros((len(NODES), exact + 1, exact + 1))  # how likely so many right and so many rival votes are
    every[:, 0, 0] = 1.0
    going = every.copy()
    elected, alive = np.zeros((2, len(NODES), samples_max + 1))
    for n in range(exact + 1):
        elected[:, n] = (every * wins[n]).sum(axis=(1, 2))
        going = going * is_open
        alive[:, n] = going.sum(axis=(1, 2))
        every, going = _one_more(every), _one_more(going)
    lead, spread = NODES - RIVALS, np.sqrt(NODES + RIVALS - (NODES - RIVALS) ** 2)
    for n in range(exact + 1, samples_max + 1):
        elected[:, n] = 0.5 * (1 + _ERF(math.sqrt(n / 2) * lead / spread))
        alive[:, n] = alive[:, exact]
    drawn = np.zeros_like(alive)
    np.cumsum(alive[:, :-1], axis=1, out=drawn[:, 1:])
    return elected, drawn


def _wins(most: int) -> Floats:
    """The chance that the right answer is elected, by the numbers of all votes, of its own and of its rival's."""
    n, right, rival = np.ogrid[: most + 1, : most + 1, : most + 1]
    alone = np.maximum(n - right - rival, 0)
    tied = np.where(right == 1, 1 + (rival == 1) + alone, 2.0)
    leads = (right > rival) & (right > 1)
    return np.where(leads, 1.0, np.where((right > 0) & (right >= rival), 1 / tied, 0.0))


def _are_open(most: int) -> Bools:
    """(most + 1, most + 1) whether a vote is not settled: by votes of the right answer and of its rival."""
    votes = range(most + 1)
    return np.array([[not (is_settled(a, b) or is_settled(b, a)) for b in votes] for a in votes])


def _one_more(chances: Floats) -> Floats:
    """The chances after one more sample."""
    after = chances * (1 - NODES - RIVALS)[:, None, None]
    after[:, 1:] += chances[:, :-1] * NODES[:, None, None]
    after[:, :, 1:] += chances[:, :, :-1] * RIVALS[:, None, None]
    return after


def _weights(alpha: Floats, beta: Floats) -> Floats:
    """How likely each node is under each Beta distribution."""
    log = (alpha[:, None] - 1) * np.log(NODES) + (beta[:, None] - 1) * np.log1p(-NODES)
    weights = np.exp(log - log.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
