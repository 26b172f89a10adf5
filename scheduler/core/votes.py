"""What votes are expected to reach, and to cost: the chance that the right answer leads after n samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints
from scheduler.core.stopping import is_decided, is_settled, votes_to_settle

NODES = (np.arange(60) + 0.5) / 60
RIVAL_SHARE = 0.3
"""The share of wrong samples that agree on one wrong answer (about that of gsm8k-qwen05b and svamp-codex)."""
RIVALS = (1 - NODES) * RIVAL_SHARE
EXACT_MAX = 16
"""Votes are counted up to so many samples; wave by wave."""
OPEN_MAX = 48
"""Of votes of more samples hardly any settles any more, and the lead is as good as normal."""
TINY = 1e-12
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def vote_curve(alpha: Floats, beta: Floats, samples_max: int) -> Floats:
    """The chance that a vote of n samples elects the right answer, for n = 0..samples_max: (Q, samples_max + 1).

    Averaged over what is not known of the chance that one sample is right. Where wrong answers agree, more do harm.
    """
    return np.asarray(_weights(alpha, beta) @ _expected(samples_max).elected)


def vote_costs(alpha: Floats, beta: Floats, prompt_cost: Floats, sample_cost: Floats, samples_max: int) -> Floats:
    """What votes of up to n samples are expected to cost that end when they are settled, for n = 0..samples_max.

    (Q, samples_max + 1). The right to draw more is taken to make no vote cheaper.
    """
    weights, votes = _weights(alpha, beta), _expected(samples_max)
    costs = (weights @ votes.waves) * prompt_cost[:, None] + (weights @ votes.drawn) * sample_cost[:, None]
    return np.maximum.accumulate(costs, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """Of votes of up to n samples, (nodes, n + 1) each: how often they elect the right answer, and what they draw."""

    elected: Floats
    drawn: Floats
    waves: Floats


@cache
def _expected(samples_max: int) -> _Expected:
    """Counted wave by wave up to EXACT_MAX samples, then sample by sample, with as many waves a sample as before.

    Remembered, so not to be changed.
    """
    exact = _counted()
    if samples_max <= EXACT_MAX:
        return _Expected(*(values[:, : samples_max + 1] for values in (exact.elected, exact.drawn, exact.waves)))
    elected, still_open = _one_by_one(samples_max)
    drawn = exact.drawn[:, -1:] + np.cumsum(still_open[:, EXACT_MAX:-1], axis=1)
    late = EXACT_MAX // 2
    apart = np.maximum(exact.drawn[:, -1] - exact.drawn[:, late], TINY)
    per_sample = (exact.waves[:, -1] - exact.waves[:, late]) / apart
    waves = exact.waves[:, -1:] + per_sample[:, None] * (drawn - exact.drawn[:, -1:])
    both = ((exact.elected, elected[:, EXACT_MAX + 1 :]), (exact.drawn, drawn), (exact.waves, waves))
    return _Expected(*(np.concatenate(pair, axis=1) for pair in both))


@cache
def _counted() -> _Expected:
    """Votes of up to EXACT_MAX samples, wave by wave.

    A sample is right, agrees with the one rival, or says what nobody else does; of answers with as many votes any may
    have been the first.
    """
    elected, drawn, waves = np.zeros((3, len(NODES), EXACT_MAX + 1))
    every = _none_drawn(EXACT_MAX)
    for n in range(1, EXACT_MAX + 1):
        every = _one_more(every)
        elected[:, n] = (every * _wins(n)).sum(axis=(1, 2))
        arriving = [np.zeros_like(every) for _ in range(n)]  # by samples drawn, where a wave ended
        arriving[0] = _none_drawn(EXACT_MAX)
        for k, here in enumerate(arriving):
            sizes = _wave_sizes(k, n)
            for size in np.unique(sizes[sizes > 0]):
                asking = here * (sizes == size)
                chance = asking.sum(axis=(1, 2))
                waves[:, n] += chance
                drawn[:, n] += chance * size
                for _ in range(size):
                    asking = _one_more(asking)
                if k + size < n:
                    arriving[k + size] += asking
    return _Expected(elected, drawn, waves)


def _one_by_one(samples_max: int) -> tuple[Floats, Floats]:
    """(nodes, samples_max + 1) how likely the right answer is elected of so many samples, and the vote still open.

    Beyond OPEN_MAX samples the lead over the rival is taken for normal, and no more votes to settle.
    """
    elected, still_open = np.zeros((2, len(NODES), samples_max + 1))
    most = min(samples_max, OPEN_MAX)
    every, going = _none_drawn(most), _none_drawn(most)
    for drawn in range(most + 1):
        elected[:, drawn] = (every * _wins(drawn, most)).sum(axis=(1, 2))
        going = going * (_wave_sizes(drawn, samples_max, most) > 0)
        still_open[:, drawn] = going.sum(axis=(1, 2))
        every, going = _one_more(every), _one_more(going)
    more = np.arange(most + 1, samples_max + 1)
    lead, spread = NODES - RIVALS, np.sqrt(NODES + RIVALS - (NODES - RIVALS) ** 2)
    elected[:, most + 1 :] = 0.5 * (1 + _ERF(np.sqrt(more / 2) * (lead / spread)[:, None])) if len(more) else 0.0
    still_open[:, most + 1 :] = still_open[:, [most]]
    return elected, still_open


def _none_drawn(most: int) -> Floats:
    """(nodes, right votes, rival votes) how likely there are so many."""
    chances = np.zeros((len(NODES), most + 1, most + 1))
    chances[:, 0, 0] = 1.0
    return chances


def _one_more(chances: Floats) -> Floats:
    """The chances after one more sample."""
    after = chances * (1 - NODES - RIVALS)[:, None, None]
    after[:, 1:] += chances[:, :-1] * NODES[:, None, None]
    after[:, :, 1:] += chances[:, :, :-1] * RIVALS[:, None, None]
    return after


def _wins(n: int, most: int = EXACT_MAX) -> Floats:
    """The chance that the right answer is elected of n votes, by its own and by its rival's."""
    right, rival = np.ogrid[: most + 1, : most + 1]
    alone = np.maximum(n - right - rival, 0)
    tied = np.where(right == 1, 1 + (rival == 1) + alone, 2.0)
    leads = (right > rival) & (right > 1)
    return np.where(leads, 1.0, np.where((right > 0) & (right >= rival), 1 / tied, 0.0))


@cache
def _wave_sizes(drawn: int, samples_max: int, most: int = EXACT_MAX) -> Ints:
    """The samples that a vote asks for next, by the votes of the right answer and of its rival; 0 where it is over."""
    sizes = np.zeros((most + 1, most + 1), np.int64)
    left = samples_max - drawn
    for right in range(min(drawn, most) + 1):
        for rival in range(min(drawn - right, most) + 1):
            alone = min(drawn - right - rival, 2)
            leader, runner_up, *_ = sorted([right, rival, *[1] * alone, 0], reverse=True)
            if left > 0 and not is_settled(leader, runner_up) and not is_decided(leader, runner_up, left):
                sizes[right, rival] = votes_to_settle(leader, runner_up, votes_max=left)
    return sizes


def _weights(alpha: Floats, beta: Floats) -> Floats:
    """How likely each node is under each Beta distribution."""
    log = (alpha[:, None] - 1) * np.log(NODES) + (beta[:, None] - 1) * np.log1p(-NODES)
    weights = np.exp(log - log.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
