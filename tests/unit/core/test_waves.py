"""Waves are as large as is cheapest, and none is asked for that is not worth its price."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.curves import tokens_until_accepted
from scheduler.core.waves import cheapest_waves, next_wave
from scheduler.types import Arm, Plan, Query

QUERY = Query(id=1, model="small", messages=(), prompt_tokens=9, prompt_tokens_max=73)
PLAN = Plan(
    query_id=1,
    arm=Arm(model="small", strategy="self_consistency"),
    samples_max=8,
    tokens_max=64,
    ceiling_nanousd=None,
)

shapes = st.floats(0.1, 20.0)
prices_of_prompts = st.floats(0.0, 1000.0)
few = st.integers(1, 7)


def fails(alpha: float, beta: float, samples: int) -> float:
    """The chance that all of some samples fail."""
    chance = 1.0
    for j in range(samples):
        chance *= (beta + j) / (alpha + beta + j)
    return chance


def compositions(n: int) -> Iterator[tuple[int, ...]]:
    """All ways to draw n samples in waves."""
    if n == 0:
        yield ()
    for first in range(1, n + 1):
        for rest in compositions(n - first):
            yield (first, *rest)


def cost_of(waves: tuple[int, ...], alpha: float, beta: float, prompt: float, sample: float) -> float:
    cost, drawn = 0.0, 0
    for wave in waves:
        cost += fails(alpha, beta, drawn) * (prompt + wave * sample)
        drawn += wave
    return cost


@given(alpha=shapes, beta=shapes, prompt=prices_of_prompts, sample=st.floats(0.1, 1000.0), n=few)
def test_the_cheapest_waves_are_those_found_by_trying_all(
    alpha: float, beta: float, prompt: float, sample: float, n: int
) -> None:
    best = min(cost_of(waves, alpha, beta, prompt, sample) for waves in compositions(n))

    costs, _ = cheapest_waves(np.array([alpha]), np.array([beta]), np.array([prompt]), np.array([sample]), n)

    assert costs[0, n] == pytest.approx(best)
    assert (np.diff(costs[0]) > 0).all()


def test_beside_a_free_prompt_every_wave_is_of_one_sample() -> None:
    alpha, beta, sample = np.array([1.0, 2.0]), np.array([3.0, 0.5]), np.array([10.0, 7.0])

    costs, starts = cheapest_waves(alpha, beta, np.zeros(2), sample, 12)

    assert np.allclose(costs, tokens_until_accepted(alpha, beta, sample, 12))
    assert (starts[:, 1:] == np.arange(12)).all()


def wave(prompt: float, *, price: float = 0.0, at_least: int = 1, samples_max: int = 8) -> int:
    return next_wave(
        1.0, 3.0, prompt_cost=prompt, sample_cost=100.0, samples_max=samples_max, price=price, at_least=at_least
    )


def test_the_longer_the_prompt_the_more_samples_share_it() -> None:
    waves = [wave(prompt) for prompt in (0.0, 50.0, 200.0, 1000.0, 1e6)]

    assert waves == sorted(waves)
    assert (waves[0], waves[-1]) == (1, 8)


def test_a_prompt_that_is_dear_is_not_paid_where_the_samples_are_not_worth_it() -> None:
    cheap, dear = (wave(prompt, price=0.001) for prompt in (100.0, 10_000.0))

    assert cheap > 0
    assert dear == 0


def test_what_must_be_asked_for_at_least_is_no_more_than_is_worth_its_price() -> None:
    # beside a free prompt the sample after k failures is worth its price while 1 / (4 + k) >= 0.0015 * 100: k = 0..2
    assert wave(0.0, price=0.0015, at_least=8) == 3
    assert wave(0.0, at_least=5) == 5


@given(
    alpha=shapes, beta=shapes, prompt=prices_of_prompts, sample=st.floats(0.1, 1000.0), n=few, price=st.floats(0.0, 0.1)
)
def test_waves_asked_for_one_by_one_reach_the_best_that_any_plan_can(
    alpha: float, beta: float, prompt: float, sample: float, n: int, price: float
) -> None:
    @cache
    def best(drawn: int) -> float:
        """What is still to be gained after as many failures, by whoever knows all plans."""
        worth = [0.0]
        for size in range(1, n - drawn + 1):
            failing = fails(alpha, beta + drawn, size)
            worth.append(1 - failing - price * (prompt + size * sample) + failing * best(drawn + size))
        return max(worth)

    drawn, reached, reaching = 0, 0.0, 1.0
    while drawn < n:
        size = next_wave(
            alpha, beta + drawn, prompt_cost=prompt, sample_cost=sample, samples_max=n - drawn, price=price
        )
        if not size:
            break
        failing = fails(alpha, beta + drawn, size)
        reached += reaching * (1 - failing - price * (prompt + size * sample))
        reaching *= failing
        drawn += size

    assert price == 0 or reached == pytest.approx(best(0), abs=1e-9)
    assert price > 0 or drawn == n


@given(alpha=shapes, beta=shapes, failures=st.integers(0, 30), sample=st.floats(1.0, 1e6), price=st.floats(1e-9, 1.0))
def test_beside_a_free_prompt_samples_are_worth_it_until_the_chance_per_cost_falls_below_the_price(
    alpha: float, beta: float, failures: int, sample: float, price: float
) -> None:
    def gain(more: int) -> float:
        """What the sample after so many more failures is expected to bring beyond its price, as seen from now."""
        chance = alpha / (alpha + beta + failures + more)
        return fails(alpha, beta + failures, more) * (chance - price * sample)

    worth = next_wave(
        alpha, beta + failures, prompt_cost=0.0, sample_cost=sample, samples_max=40, price=price, at_least=40
    )

    assert worth == 40 or gain(worth) <= 1e-9
    assert worth == 0 or gain(worth - 1) >= -1e-9
