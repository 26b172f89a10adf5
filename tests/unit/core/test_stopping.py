"""The Beta test of a vote, exact and against scipy's own Beta distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from scheduler.core.stopping import (
    is_decided,
    is_settled,
    is_vote_worth,
    leader_holds,
    leader_survives,
    votes_to_settle,
)

votes = st.integers(min_value=0, max_value=200)
few_votes = st.integers(min_value=0, max_value=40)


@pytest.mark.parametrize(
    ("leader", "runner_up", "chance"), [(0, 0, 0.5), (1, 0, 0.75), (2, 0, 7 / 8), (4, 0, 31 / 32), (3, 3, 0.5)]
)
def test_the_chance_that_the_leader_holds_is_exact(leader: int, runner_up: int, chance: float) -> None:
    held = leader_holds(leader, runner_up)

    assert held == chance


@given(leader=votes, runner_up=votes)
def test_the_chance_is_the_upper_half_of_a_beta_distribution(leader: int, runner_up: int) -> None:
    upper_half = beta.sf(0.5, leader + 1, runner_up + 1)

    held = leader_holds(leader, runner_up)

    assert held == pytest.approx(upper_half, rel=1e-9, abs=1e-12)


@given(leader=votes, runner_up=votes)
def test_a_vote_for_the_leader_never_makes_it_less_sure(leader: int, runner_up: int) -> None:
    before = leader_holds(leader, runner_up)

    assert leader_holds(leader + 1, runner_up) >= before
    assert leader_holds(leader, runner_up + 1) <= before


def test_thousands_of_votes_are_no_overflow() -> None:
    held = leader_holds(6000, 5000)

    assert held == 1.0


def test_four_unanimous_votes_settle_and_three_do_not() -> None:
    settled = [is_settled(n, 0) for n in range(6)]

    assert settled == [False, False, False, False, True, True]


def test_a_tie_is_never_settled() -> None:
    settled = is_settled(5, 5, settled_at=0.5)

    assert not settled


def test_a_vote_is_decided_when_all_that_is_left_could_not_turn_it() -> None:
    decided = [is_decided(3, 1, left) for left in (0, 1, 2, 3)]

    assert decided == [True, True, False, False]


def test_after_one_vote_three_more_could_settle_it() -> None:
    more = votes_to_settle(1, 0, votes_max=7)

    assert more == 3


def test_with_few_votes_left_fewer_could_decide_it() -> None:
    more = votes_to_settle(1, 0, votes_max=2)

    assert more == 1


@given(leader=few_votes, runner_up=few_votes, votes_max=st.integers(1, 60))
def test_a_wave_of_this_size_is_the_smallest_that_could_end_the_vote(
    leader: int, runner_up: int, votes_max: int
) -> None:
    def could_end(more: int) -> bool:
        return is_settled(leader + more, runner_up) or is_decided(leader + more, runner_up, votes_max - more)

    more = votes_to_settle(leader, runner_up, votes_max)

    assert 1 <= more <= votes_max
    assert could_end(more) or more == votes_max
    assert not any(could_end(fewer) for fewer in range(1, more))


@pytest.mark.parametrize("cell", [(1, 0, 0, 3), (2, 1, 1, 4), (3, 2, 5, 6), (1, 1, 6, 8)])
def test_the_chance_that_the_leader_survives_is_that_of_drawn_votes(cell: tuple[int, int, int, int]) -> None:
    leader, runner_up, others, left = cell
    rng = np.random.default_rng(1)
    either = rng.binomial(left, rng.beta(leader + runner_up + 1.0, others + 1.0, 40_000))
    for_leader = rng.binomial(either, rng.beta(leader + 0.5, runner_up + 0.5, 40_000))

    survives = (leader + for_leader >= runner_up + either - for_leader).mean()

    assert leader_survives(*cell) == pytest.approx(survives, abs=0.01)


@given(few_votes, few_votes, few_votes)
def test_with_no_votes_left_a_leader_survives_and_a_decided_one_does_with_some(
    leader: int, runner_up: int, others: int
) -> None:
    first, second = max(leader, runner_up), min(leader, runner_up)

    assert leader_survives(first, second, others, 0) == pytest.approx(1.0)
    if first > second:
        assert leader_survives(first, second, others, first - second - 1) == pytest.approx(1.0)


def test_a_vote_is_worth_less_where_answers_scatter_and_few_samples_are_left() -> None:
    assert is_vote_worth((2, 1, 0), 10, 0.5, 0.05)
    assert not is_vote_worth((4, 1, 0), 2, 0.5, 0.05)
    assert not is_vote_worth((2, 1, 0), 10, 0.02, 0.05)  # hopeless: a sample is hardly ever right
    assert is_vote_worth((0, 0, 3), 5, 0.5, 0.4)  # nobody leads
    assert is_vote_worth((9, 0, 0), 1, 0.01, 0.0)  # money is not scarce
