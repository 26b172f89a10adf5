"""Replays spend what was recorded, and frontiers compare it."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.core.policies.base import Mode
from scheduler.core.policies.voting import PRICES, SETTLED_AT
from scheduler.errors import InvalidRequest
from scheduler.simulation.frontiers import frontier, ratios
from scheduler.simulation.replay import Replay
from scheduler.simulation.simulate import Simulation, simulate
from scheduler.simulation.splits import apart
from tests.unit.simulation.pools import lines

POOL = lines(
    **{f"easy{i}": "1111" for i in range(10)},
    **{f"even{i}": "1010" for i in range(10)},
    **{f"never{i}": "0000" for i in range(10)},
)


def run(mode: Mode = Mode.VERIFIER, seed: int = 0, policies: list[str] | None = None) -> Simulation:
    return simulate((), POOL, mode=mode, policies=policies, budgets=[1, 2, 4], draws=50, seed=seed)


def test_uniform_takes_all_its_samples_and_stop_only_those_up_to_the_first_right_one() -> None:
    found = run(policies=["uniform", "stop"])

    assert [point.tokens_per_query for point in found.frontiers["uniform"]] == [100.0, 200.0, 400.0]
    assert found.frontiers["uniform"][0].accuracy == pytest.approx(1.5 / 3, abs=0.05)
    assert found.frontiers["uniform"][2].accuracy == pytest.approx(2 / 3)
    # one sample, 1 + 2/4 + 1/6 of them, and all four
    assert found.frontiers["stop"][-1].tokens_per_query == pytest.approx(100 * (1 + 5 / 3 + 4) / 3, rel=0.03)


def test_the_oracle_leaves_out_what_never_succeeds() -> None:
    found = run(policies=["oracle"])

    assert found.frontiers["oracle"][-2].tokens_per_query == pytest.approx(100 * (1 + 5 / 3) / 3, rel=0.03)
    assert found.frontiers["oracle"][-2].accuracy == pytest.approx(2 / 3)


def test_a_vote_elects_the_most_frequent_answer() -> None:
    found = run(Mode.VOTE, policies=["uniform"])

    assert found.frontiers["uniform"][-1].accuracy == pytest.approx(2 / 3)


def test_of_many_settings_those_are_shown_that_were_worth_their_cost_in_training() -> None:
    found = simulate(POOL, POOL, mode=Mode.VOTE, policies=["allotd"], budgets=None, draws=10, seed=0)

    labels = {point.label for point in found.frontiers["allotd"]}
    assert {f"{settled_at:g} at 0" for settled_at in SETTLED_AT} <= labels
    assert len(labels) < len(SETTLED_AT) * len(PRICES) / 2


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    one, again, other = (run(seed=seed, policies=["stop", "allotd"]).as_json() for seed in (3, 3, 4))

    assert one == again
    assert one != other


def test_a_ratio_compares_costs_at_equal_accuracy_between_settings() -> None:
    def at(tokens: float, right: float) -> Replay:
        values = {name: np.full(4, np.nan) for name in ("usd", "samples", "requests")}
        return Replay(right=np.full(4, right), tokens=np.full(4, tokens), **values)

    baseline = frontier([("1", at(100, 0.3)), ("2", at(200, 0.5)), ("4", at(400, 0.9))])
    policy = frontier([("a", at(50, 0.2)), ("b", at(70, 0.4)), ("worse", at(90, 0.3)), ("c", at(100, 0.6))])

    found = ratios(policy, baseline)

    assert found["1"][0] == pytest.approx(100 / 60)
    assert found["2"][0] == pytest.approx(200 / 85)
    assert np.isnan(found["4"][0])


def test_a_pool_named_for_both_is_split() -> None:
    train, test = apart(POOL, POOL, seed=1)

    assert not {line.id for line in train} & {line.id for line in test}
    assert {line.id for line in [*train, *test]} == {line.id for line in POOL}


def test_unknown_policies_and_modes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no policy 'best'"):
        run(policies=["best"])
    with pytest.raises(InvalidRequest, match="knows no vote mode"):
        run(Mode.VOTE, policies=["stop"])
