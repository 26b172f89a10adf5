"""How many samples to ask for at once: a prompt is paid once a wave, and what a wave draws past its end is lost."""

from __future__ import annotations

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.curves import chance_of_none
from scheduler.core.evidence import Ints


def cheapest_waves(
    alpha: Floats, beta: Floats, prompt_cost: Floats, sample_cost: Floats, samples_max: int
) -> tuple[Floats, Ints]:
    """What up to n samples that end at the first accepted one cost, and where their last wave starts.

    Both are (Q, samples_max + 1), for n = 0..samples_max; all others are (Q,). A wave from j to n is paid where the
    first j samples failed, so the cheapest way to n is a shortest path:
    cost(n) = min over j < n of cost(j) + E[(1 - p)^j] (prompt + (n - j) sample). With a free prompt all waves are of
    one sample, and the cost is that of `tokens_until_accepted`.
    """
    none = chance_of_none(alpha, beta, samples_max)
    costs = np.zeros_like(none)
    starts = np.zeros(none.shape, np.int64)
    rows = np.arange(len(alpha))
    for n in range(1, samples_max + 1):
        sizes = n - np.arange(n)
        ways = costs[:, :n] + none[:, :n] * (prompt_cost[:, None] + sizes * sample_cost[:, None])
        starts[:, n] = last = n - 1 - ways[:, ::-1].argmin(axis=1)  # of waves that cost the same, the smallest
        costs[:, n] = ways[rows, last]
    return costs, starts


def next_wave(
    alpha: float,
    beta: float,
    *,
    prompt_cost: float,
    sample_cost: float,
    samples_max: int,
    price: float,
    at_least: int = 1,
) -> int:
    """How many of up to `samples_max` more samples to ask for now; 0 where none is worth its price.

    `alpha` and `beta` are the belief with all failures so far in it. The samples that are worth it, should all of them
    fail, are those where E[right] - price E[cost] is highest; the wave is the first one on the cheapest way there, or
    `at_least` of them, so that many waves do not keep a query waiting. What is not worth its price now will not be
    later, because failures only lower the chance (the Pandora rule, arXiv 2510.01394). At price 0 all are worth it.
    """
    a, b, prompt, sample = (np.array([value], float) for value in (alpha, beta, prompt_cost, sample_cost))
    costs, starts = cheapest_waves(a, b, prompt, sample, samples_max)
    net = 1 - chance_of_none(a, b, samples_max) - price * costs
    worth = int(net[0].argmax()) if price > 0 else samples_max
    wave = worth
    while starts[0, wave] > 0:
        wave = int(starts[0, wave])
    return min(max(wave, at_least), worth)
