"""Pools that ask for a model, or for how long to think, are replayed as what they are."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from scheduler.core.policies.base import Mode
from scheduler.errors import InvalidRequest
from scheduler.simulation.pools import PoolLine
from scheduler.simulation.simulate import Simulation, simulate
from tests.unit.simulation.pools import judged, lines, pool_line


def arms(queries: int, seed: int) -> list[PoolLine]:
    """A cheap model that is right on half of the queries, and a dear one that is right on most."""
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for i in range(queries):
        hard = rng.random()
        for arm, size, ease in (("small", 1, 0.5), ("large", 40, 0.85)):
            right = hard < ease
            answer = "right" if right else f"wrong {rng.integers(9)}"
            sample = {"answer": answer, "correct": int(right), "tokens": int(50 + 50 * hard)}
            found.append(pool_line(f"{seed}-{i}", [sample], arm=arm, model_params_b=size))
    return msgspec.convert(found, list[PoolLine])


def thinkings(queries: int, seed: int) -> list[PoolLine]:
    """Half know the answer early and think on, the others never find it."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(queries):
        knows = rng.random() < 0.5
        points = [
            {
                "tokens": 48 * (k + 1),
                "answer": "right" if knows and k > 1 else f"guess {k}",
                "correct": int(knows and k > 1),
                "confidence": 0.95 if knows and k > 1 else 0.5,
                "entropy": 0.1 if knows and k > 1 else 1.5,
                "probe_tokens": 8,
            }
            for k in range(20)
        ]
        final = {"answer": "right" if knows else "wrong", "correct": int(knows), "tokens": 980}
        found.append(pool_line(f"{seed}-{i}", [final], checkpoints=points))
    return msgspec.convert(found, list[PoolLine])


def run(train: list[PoolLine], test: list[PoolLine], mode: Mode = Mode.VERIFIER) -> Simulation:
    return simulate(train, test, mode=mode, policies=None, budgets=None, draws=1, seed=0)


@pytest.mark.parametrize("mode", list(Mode))
def test_choosing_among_models_costs_less_than_the_best_single_one(mode: Mode) -> None:
    found = run(arms(100, 1), arms(100, 2), mode)

    ratio = found.versus["allotd"]["uniform"]["large"]
    assert ratio is not None
    assert ratio > (1.5 if mode is Mode.VERIFIER else 0.95)


def test_thinking_stops_when_the_answer_is_settled() -> None:
    found = run(thinkings(25, 1), thinkings(25, 2))

    ratio = found.versus["allotd"]["uniform"]["980"]
    assert ratio is not None
    assert ratio > 1.5


def test_kinds_are_not_mixed() -> None:
    with pytest.raises(InvalidRequest, match="One workload cannot hold"):
        run([], [*lines(a="10"), *thinkings(1, 1)])
    with pytest.raises(InvalidRequest, match="must be of a kind"):
        run(lines(a="10"), thinkings(2, 1))


def test_a_query_that_lacks_an_arm_is_named() -> None:
    incomplete = [line for line in arms(3, 1) if (line.id, line.arm) != ("1-2", "large")]

    with pytest.raises(InvalidRequest, match="One workload cannot hold"):
        run(arms(3, 3), incomplete)
    with pytest.raises(InvalidRequest, match="x under large"):
        run(arms(3, 3), [*arms(3, 1), *_two_of_three_arms()])


def _two_of_three_arms() -> list[PoolLine]:
    return msgspec.convert([pool_line("x", judged("1"), arm=arm) for arm in ("small", "tiny")], list[PoolLine])
