"""The strategies driven by hand: what each asks for, when it ends, and whom it chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.strategies import STRATEGIES, Generate, Score
from scheduler.core.strategies.base import growing_wave
from scheduler.core.strategies.self_consistency import elect_weighed
from scheduler.types import Arm, Outcome, Plan, Query, Sample, Verdict, VerifierSpec

QUERY = Query(
    id=1,
    model="small",
    messages=({"role": "user", "content": "2 + 2?"},),
    prompt_tokens=9,
    prompt_tokens_max=73,
)
answers = st.lists(st.sampled_from(["4", "5", "6", None]), max_size=40)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How a strategy went: its outcome, the waves it asked for, and the samples it was given."""

    outcome: Outcome
    waves: tuple[int, ...]
    drawn: tuple[Sample, ...]


def plan(strategy: str, samples_max: int) -> Plan:
    arm = Arm(model="small", strategy=strategy)
    return Plan(query_id=1, arm=arm, samples_max=samples_max, tokens_max=64, ceiling_nanousd=None)


def sample(answer: str | None) -> Sample:
    return Sample(text=f"so it is {answer}", tokens=5, answer=answer)


def is_four(one: Sample) -> float:
    return float(one.answer == "4")


def drive(
    strategy: str,
    given_answers: Sequence[str | None],
    *,
    query: Query = QUERY,
    samples_max: int = 8,
    wave_max: int | None = None,
    judged: Callable[[Sample], float] = is_four,
    price: float = 0.0,
    prompt_nanousd: float = 0.0,
) -> Run:
    """Run a strategy against samples with these answers; when they run out, nothing more is given."""
    source: Iterator[Sample] = map(sample, given_answers)
    waves: list[int] = []
    drawn: list[Sample] = []
    priced = replace(
        plan(strategy, samples_max),
        price=price,
        alpha=1.0,
        beta=3.0,
        prompt_nanousd=prompt_nanousd,
        sample_nanousd=100.0,
    )
    steps = STRATEGIES[strategy](query, priced)
    reply: object = None
    while True:
        try:
            request = steps.send(reply)
        except StopIteration as end:
            return Run(outcome=end.value, waves=tuple(waves), drawn=tuple(drawn))
        if isinstance(request, Generate):
            waves.append(request.n)
            size = request.n if wave_max is None else min(request.n, wave_max)
            reply = tuple(islice(source, size))
            drawn.extend(reply)
        else:
            assert isinstance(request, Score)
            reply = tuple(map(judged, request.samples))


def test_direct_takes_its_only_sample() -> None:
    run = drive("direct", ["5", "4"])

    assert run.waves == (1,)
    assert run.outcome.chosen == sample("5")


def test_best_of_n_stops_at_the_first_verified_sample() -> None:
    run = drive("best_of_n", ["5", "4", "4", "4"])

    assert run.waves == (1, 1)
    assert run.outcome == Outcome(chosen=sample("4"), because="verified", confidence=1.0)


def test_best_of_n_without_a_verified_sample_spends_its_budget_and_no_more() -> None:
    run = drive("best_of_n", ["5"] * 40, samples_max=8)

    assert sum(run.waves) == 8
    assert run.outcome.because == "highest outcome reward"


def test_best_of_n_keeps_the_sample_of_the_highest_reward() -> None:
    rewards = {"5": 0.2, "6": 0.9, "7": 0.4}

    run = drive("best_of_n", ["5", "6", "7"], samples_max=3, judged=lambda one: rewards[one.answer or ""])

    assert run.outcome == Outcome(chosen=sample("6"), because="highest outcome reward", confidence=0.9)


def test_best_of_n_draws_few_samples_past_the_one_that_ends_it() -> None:
    run = drive("best_of_n", ["5"] * 20 + ["4"] * 40, samples_max=60)

    assert run.outcome.because == "verified"
    assert len(run.drawn) <= 1.5 * 21


def test_best_of_n_asks_for_more_at_once_the_longer_the_prompt_beside_an_answer() -> None:
    runs = [drive("best_of_n", ["5"] * 40, prompt_nanousd=prompt) for prompt in (0.0, 100.0, 400.0, 1e6)]

    assert [run.waves for run in runs] == [(1, 1, 1, 1, 2, 2), (2, 3, 3), (4, 4), (8,)]


def test_self_consistency_asks_at_once_for_what_it_would_ask_for_even_if_all_agreed() -> None:
    runs = [drive("self_consistency", ["4"] * 8, price=price) for price in (0.0, 0.0001, 0.001)]

    assert [run.waves[0] for run in runs] == [4, 2, 1]


def test_best_of_n_stops_where_one_more_sample_is_not_worth_its_price() -> None:
    # after k failures the next sample is right with a chance of 1 / (4 + k): 1/8 after four of them
    run = drive("best_of_n", ["5"] * 40, samples_max=20, price=0.00126)

    assert len(run.drawn) == 4
    assert run.outcome == Outcome(chosen=sample("5"), because="one more sample is not worth its price", confidence=0.0)


def test_best_of_n_draws_its_first_sample_at_any_price() -> None:
    assert drive("best_of_n", ["4"], price=1e9).outcome.because == "verified"


def test_uniform_draws_all_its_samples_at_once_and_keeps_the_best_or_the_most_frequent() -> None:
    judge = replace(QUERY, verifier=VerifierSpec(kind=Verdict.NUMERIC, reference="4"))

    verified = drive("uniform", ["5", "5", "4", "5"], samples_max=4, query=judge)
    voted = drive("uniform", ["5", "5", "4", "5"], samples_max=4)
    cut = drive("uniform", ["5", "4"], samples_max=4, query=judge)

    assert (verified.waves, voted.waves, cut.waves) == ((4,), (4,), (4, 2))
    assert verified.outcome == Outcome(chosen=sample("4"), because="verified", confidence=1.0)
    assert (voted.outcome.chosen, voted.outcome.because) == (sample("5"), "majority of all samples")
    assert cut.outcome.chosen == sample("4")


@pytest.mark.parametrize("strategy", ["best_of_n", "self_consistency"])
def test_a_greedy_query_ends_after_its_one_sample_and_says_why(strategy: str) -> None:
    run = drive(strategy, ["5"] * 40, samples_max=1, query=replace(QUERY, temperature=0.0))

    assert run.waves == (1,)
    assert run.outcome.because == "greedy sampling would repeat its only sample"


def test_self_consistency_asks_for_the_four_samples_that_could_settle_it_at_once() -> None:
    run = drive("self_consistency", ["4"] * 40, samples_max=8)

    assert run.waves == (4,)
    assert run.outcome == Outcome(chosen=sample("4"), because="vote settled", confidence=31 / 32)


def test_self_consistency_goes_on_while_the_vote_is_open() -> None:
    run = drive("self_consistency", ["5", "4", "4", "5", *["4"] * 40], samples_max=40)

    assert run.outcome.chosen == sample("4")
    assert run.outcome.because == "vote settled"
    assert (run.outcome.confidence or 0) >= 0.95


def test_self_consistency_stops_when_the_rest_could_not_turn_the_vote() -> None:
    run = drive("self_consistency", ["4", "4", "5"], samples_max=3)

    assert run.waves == (2,)
    assert run.outcome.chosen == sample("4")
    assert run.outcome.because == "vote decided"


def test_self_consistency_lets_unreadable_samples_abstain() -> None:
    run = drive("self_consistency", [None, "4", None, "4", "4", "4"], samples_max=20)

    assert run.outcome.chosen == sample("4")
    assert run.outcome.confidence == 31 / 32


def test_self_consistency_without_any_readable_answer_takes_the_first_sample_and_trusts_it_not() -> None:
    run = drive("self_consistency", [None] * 40, samples_max=5)

    assert run.outcome.chosen == sample(None)
    assert run.outcome.confidence == 0.0


def test_self_consistency_that_runs_out_of_money_elects_from_what_it_has() -> None:
    run = drive("self_consistency", ["5", "4", "4"], samples_max=20)

    assert run.outcome.chosen == sample("4")
    assert run.outcome.because == "vote cut short"


def test_self_consistency_stops_where_what_more_votes_may_change_is_not_worth_their_price() -> None:
    votes = ["5", "4", "6", "5", *["4", "5"] * 20]

    assert len(drive("self_consistency", votes, samples_max=16, price=0.001).drawn) < 16
    assert len(drive("self_consistency", votes, samples_max=16).drawn) == 16
    dear = drive("self_consistency", votes, samples_max=16, price=1e9)
    assert (dear.waves, dear.outcome.because) == ((1,), "one more sample is not worth its price")


def test_of_answers_with_as_many_votes_the_surer_one_is_elected() -> None:
    unsure, sure = replace(sample("5"), logprob_mean=-1.2), replace(sample("4"), logprob_mean=-0.1)
    untold, two = replace(sure, logprob_mean=None), plan("self_consistency", 2)

    assert elect_weighed(QUERY, two, (unsure, sure), because="").chosen == sure
    assert elect_weighed(QUERY, two, (unsure, untold), because="").chosen == untold


def test_a_tie_goes_to_the_answer_that_came_first() -> None:
    run = drive("self_consistency", ["5", "4", "4", "5"], samples_max=4)

    assert run.outcome.chosen == sample("5")
    assert run.outcome.confidence == 0.5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_a_single_sample_there_is_no_answer(strategy: str) -> None:
    run = drive(strategy, [])

    assert run.outcome == Outcome(chosen=None, because="nothing was generated")


@pytest.mark.parametrize("strategy", ["best_of_n", "self_consistency"])
def test_a_budget_of_no_samples_asks_for_none(strategy: str) -> None:
    run = drive(strategy, ["4"], samples_max=0)

    assert run.waves == ()
    assert run.outcome.chosen is None


@given(strategy=st.sampled_from(sorted(STRATEGIES)), given_answers=answers, samples_max=st.integers(1, 20))
def test_no_strategy_draws_past_its_budget(strategy: str, given_answers: list[str | None], samples_max: int) -> None:
    run = drive(strategy, given_answers, samples_max=samples_max)

    assert len(run.drawn) <= samples_max
    assert all(wave >= 1 for wave in run.waves)


@given(strategy=st.sampled_from(sorted(STRATEGIES)), given_answers=answers, wave_max=st.integers(1, 3))
def test_a_strategy_given_fewer_samples_than_it_asked_for_still_ends_within_its_budget(
    strategy: str, given_answers: list[str | None], wave_max: int
) -> None:
    run = drive(strategy, given_answers, samples_max=12, wave_max=wave_max)

    assert len(run.drawn) <= 12
    assert (run.outcome.chosen is None) == (not run.drawn)


@given(strategy=st.sampled_from(sorted(STRATEGIES)), given_answers=answers)
def test_the_same_samples_lead_to_the_same_outcome(strategy: str, given_answers: list[str | None]) -> None:
    first = drive(strategy, given_answers)

    again = drive(strategy, given_answers)

    assert again == first


@given(given_answers=answers, samples_max=st.integers(1, 20))
def test_stopping_a_decided_vote_early_elects_whom_all_samples_would(
    given_answers: list[str | None], samples_max: int
) -> None:
    run = drive("self_consistency", given_answers, samples_max=samples_max)

    if run.outcome.because == "vote decided":
        votes = [answer for answer in given_answers[:samples_max] if answer is not None]
        assert run.outcome.chosen is not None
        assert votes.count(run.outcome.chosen.answer or "") == max(map(votes.count, votes))


def test_a_growing_wave_starts_at_one_and_adds_half_of_what_is_there() -> None:
    drawn = [0]
    while drawn[-1] < 20:
        drawn.append(drawn[-1] + growing_wave(drawn[-1], 20))

    assert drawn == [0, 1, 2, 3, 4, 6, 9, 13, 19, 20]


@given(drawn=st.integers(0, 300), left=st.integers(1, 300))
def test_a_growing_wave_is_at_least_one_and_never_past_the_budget(drawn: int, left: int) -> None:
    wave = growing_wave(drawn, drawn + left)

    assert 1 <= wave <= left
