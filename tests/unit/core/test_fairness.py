"""Turns are taken by cost and weight: nobody starves, nobody gets more than its share, idling earns nothing."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.fairness import DeficitRoundRobin

WEIGHTS = {"light": 1.0, "middle": 2.0, "heavy": 5.0}


@pytest.mark.parametrize("seed", range(3))
def test_over_many_windows_each_tenant_spends_its_weights_share_within_three_percent(seed: int) -> None:
    chance = random.Random(seed)
    # Lines of very different cost, and tenants that prefer other sizes.
    costs = {
        "light": [chance.randint(1, 50) for _ in range(20_000)],
        "middle": [chance.choice([5, 5000]) for _ in range(20_000)],
        "heavy": [chance.randint(500, 1500) for _ in range(20_000)],
    }
    rotation, at, spent = DeficitRoundRobin(), Counter[str](), Counter[str]()

    for _ in range(400):
        heads = {tenant: costs[tenant][at[tenant] : at[tenant] + 64] for tenant in costs}
        for tenant, served in rotation.choose(heads, WEIGHTS, 64).items():
            spent[tenant] += sum(heads[tenant][:served])
            at[tenant] += served

    # The cheap lines of one tenant may run out within a window, which costs it the rest of that window's turn.
    busy = {tenant: spent[tenant] / WEIGHTS[tenant] for tenant in ("middle", "heavy")}
    assert busy["middle"] == pytest.approx(busy["heavy"], rel=0.03)


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 3.0}, {"a": 0.1, "b": 1.0}])
def test_lines_of_equal_cost_are_shared_by_weight_exactly_enough(weights: dict[str, float]) -> None:
    rotation, served = DeficitRoundRobin(), Counter[str]()

    for _ in range(100):
        served.update(rotation.choose({"a": [7] * 32, "b": [7] * 32}, weights, 32))

    assert served.total() == 3200
    assert served["b"] / served["a"] == pytest.approx(weights["b"] / weights["a"], rel=0.03)


def test_a_tenant_that_comes_late_has_saved_nothing_up() -> None:
    rotation = DeficitRoundRobin()
    for _ in range(50):
        rotation.choose({"early": [1] * 10, "late": []}, {}, 10)

    served = rotation.choose({"early": [1] * 10, "late": [1] * 10}, {}, 10)

    assert served == {"early": 5, "late": 5}


@given(
    waiting=st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 10**6), max_size=12)),
    weights=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100)),
    count=st.integers(0, 40),
)
def test_a_window_is_always_filled_and_a_tenants_order_kept(
    waiting: dict[str, list[int]], weights: dict[str, float], count: int
) -> None:
    served = DeficitRoundRobin().choose(waiting, weights, count)

    assert sum(served.values()) == min(count, sum(map(len, waiting.values())))
    assert all(0 <= number <= len(waiting[tenant]) for tenant, number in served.items())
