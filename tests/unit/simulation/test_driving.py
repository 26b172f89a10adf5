"""The daemon's strategies and the rules that stand for them decide alike on the same draws."""

from __future__ import annotations

import msgspec
import numpy as np

from scheduler.core.policies.adaptive_consistency import UntilBetaHolds
from scheduler.core.policies.base import Mode
from scheduler.core.policies.stop import UntilAccepted
from scheduler.core.policies.strategies import StrategyRule
from scheduler.simulation.driving import drive
from scheduler.simulation.pools import PoolLine
from scheduler.simulation.recorded import Draws, as_recorded, draw
from scheduler.simulation.replay import replay
from tests.unit.simulation.pools import pool_line

N = 12


def draws(mode: Mode) -> Draws:
    rng = np.random.default_rng(0)
    made = []
    for i in range(30):
        right = rng.random(N) < i / 30
        answers = ["right" if r else f"wrong {rng.integers(3)}" for r in right]
        samples = [{"answer": a, "correct": int(r), "tokens": 50} for a, r in zip(answers, right, strict=True)]
        made.append(pool_line(str(i), samples))
    return draw(as_recorded(msgspec.convert(made, list[PoolLine])), mode=mode, draws=5, seed=0)


def limit(n: int) -> np.ndarray:
    return np.full(30, n)


def test_best_of_n_draws_at_most_half_as_many_again_as_up_to_the_first_right_one() -> None:
    given = draws(Mode.VERIFIER)

    strategy = replay(given, StrategyRule(strategy="best_of_n", samples=limit(N)))
    rule = replay(given, UntilAccepted(samples=limit(N)))

    assert np.array_equal(strategy.right, rule.right)
    assert np.all(strategy.samples >= rule.samples)
    assert np.all(strategy.samples <= 1.5 * rule.samples)
    assert np.all(strategy.requests <= rule.requests)


def test_self_consistency_stops_where_adaptive_consistency_does_or_where_nothing_can_change() -> None:
    given = draws(Mode.VOTE)

    drawn, _, right = drive(given, StrategyRule(strategy="self_consistency", samples=limit(N)))
    rule = replay(given, UntilBetaHolds(threshold=0.95, samples_max=limit(N)), weighs_votes=True)

    assert np.all(drawn.mean(axis=1) <= rule.samples)
    assert np.array_equal(right.mean(axis=1), rule.right)
