"""The fake engine is the same for the same seeds, as difficult as its options say, and fails when it is told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from scheduler.engine import Generation, GenerationRequest
from scheduler.errors import EngineError, EngineUnavailable, InvalidRequest
from workers.engines.fake import FakeEngine, FakeOptions, right_answer, success_rate, value_of


def request(question: str = "What is 12 + 9?", **values: Any) -> GenerationRequest:
    usual: dict[str, Any] = {"request_id": "r-1", "n": 4, "tokens_max": 512}
    return GenerationRequest(model="fake", messages=({"role": "user", "content": question},), **(usual | values))


def generate(engine: FakeEngine, asked: GenerationRequest) -> Generation:
    return asyncio.run(engine.generate(asked, asyncio.Event()))


def answers(generation: Generation) -> list[str]:
    return [sample.text.rpartition(" ")[2].rstrip(".") for sample in generation.samples]


def test_two_engines_with_one_seed_say_the_same() -> None:
    first, second = (FakeEngine(FakeOptions(seed=3)) for _ in range(2))

    assert generate(first, request()) == generate(second, request())


def test_engines_with_other_seeds_say_something_else() -> None:
    first, second = (generate(FakeEngine(FakeOptions(seed=seed)), request(n=8)) for seed in (3, 4))

    assert first != second


def test_what_is_said_does_not_depend_on_what_was_asked_before() -> None:
    fresh, used = FakeEngine(), FakeEngine()
    generate(used, request("What is 1 + 1?", request_id="before"))

    assert generate(used, request()) == generate(fresh, request())


def test_a_later_wave_without_a_seed_draws_other_samples() -> None:
    engine = FakeEngine()

    first, second = (generate(engine, request(request_id=f"wave-{i}", n=8)) for i in range(2))

    assert [s.text for s in first.samples] != [s.text for s in second.samples]


def test_sample_i_of_seed_s_is_sample_0_of_seed_s_plus_i() -> None:
    engine = FakeEngine()

    wave = generate(engine, request(seed=10, n=3))
    alone = generate(engine, request(seed=12, n=1))

    assert wave.samples[2] == alone.samples[0]


def test_at_temperature_zero_all_samples_are_one() -> None:
    generation = generate(FakeEngine(), request(temperature=0.0, n=5))

    assert len({sample.text for sample in generation.samples}) == 1


def test_queries_are_as_easy_as_the_options_say() -> None:
    options = FakeOptions(success_alpha=6.0, success_beta=2.0)

    rates = [success_rate(options, "fake", request(f"What is {i} + 1?").messages) for i in range(500)]

    assert sum(rates) / len(rates) == pytest.approx(0.75, abs=0.03)
    assert min(rates) < 0.5
    assert max(rates) > 0.95


def test_samples_are_right_as_often_as_their_query_is_easy() -> None:
    options = FakeOptions(seed=1)
    asked = request("What is 40 + 2?", n=600)

    share = answers(generate(FakeEngine(options), asked)).count("42") / 600

    assert share == pytest.approx(success_rate(options, "fake", asked.messages), abs=0.07)


def test_wrong_answers_scatter_with_one_ahead_of_the_others() -> None:
    options = FakeOptions(success_alpha=0.01, success_beta=100.0, wrong_answers=4)

    votes = Counter(answers(generate(FakeEngine(options), request(n=400)))).most_common()

    assert len(votes) == 4
    assert votes[0][1] > 1.5 * votes[1][1]


def test_a_cut_sample_has_no_answer_and_says_so() -> None:
    generation = generate(FakeEngine(), request(tokens_max=5))

    assert {sample.finish_reason for sample in generation.samples} == {"length"}
    assert {sample.tokens for sample in generation.samples} == {5}
    assert "21." not in " ".join(sample.text for sample in generation.samples)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 + 9", 21), ("12-9", 3), ("3 + 4 * 5", 23), ("-3 + 10", 7), ("2 * 3 - 4 * 5 + 1", -13), ("7 × 6", 42)],
)
def test_sums_are_computed(expression: str, value: int) -> None:
    assert value_of(expression) == value


def test_the_last_sum_of_a_prompt_is_its_question() -> None:
    assert right_answer("Example: 1 + 1 = 2.\nWhat is 12 + 9?") == "21"


def test_a_prompt_without_a_sum_has_an_answer_that_never_changes() -> None:
    assert right_answer("Who was first on the moon?") == "335"


def test_an_unavailable_request_may_be_available_the_next_time() -> None:
    engine = FakeEngine(FakeOptions(unavailable_rate=0.5))

    outcomes = []
    for _ in range(20):
        try:
            outcomes.append(not generate(engine, request()).interrupted)
        except EngineUnavailable:
            outcomes.append(False)

    assert {True, False} == set(outcomes)


def test_a_broken_request_keeps_what_was_said_until_then() -> None:
    generation = generate(FakeEngine(FakeOptions(break_rate=1.0, break_after_tokens=8)), request(n=2))

    assert generation.interrupted
    assert [sample.tokens for sample in generation.samples] == [8, 8]
    assert generation.usage.completion == 16


def test_a_request_broken_before_its_first_token_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        generate(FakeEngine(FakeOptions(break_rate=1.0, break_after_tokens=0)), request())


def test_garbage_is_an_error_that_is_not_worth_repeating() -> None:
    with pytest.raises(EngineError) as caught:
        generate(FakeEngine(FakeOptions(garbage_rate=1.0)), request())

    assert not caught.value.retryable


def test_a_hanging_request_ends_with_its_abort() -> None:
    async def hung() -> Generation:
        abort = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, abort.set)
        return await FakeEngine(FakeOptions(hang_rate=1.0)).generate(request(), abort)

    generation = asyncio.run(hung())

    assert generation.interrupted
    assert generation.samples == ()


def test_a_wrong_meter_reports_more_than_was_allowed() -> None:
    generation = generate(FakeEngine(FakeOptions(overrun_rate=1.0)), request(n=2, tokens_max=10))

    assert generation.usage.completion > 20


def test_options_are_read_from_json() -> None:
    options = FakeOptions.from_json('{"seed": 5, "models": ["a", "b"], "tokens_per_s": 100}')

    assert (options.seed, options.models, options.tokens_per_s) == (5, ("a", "b"), 100.0)


@pytest.mark.parametrize("text", ["[]", "{", '{"sead": 1}', '{"seed": "one"}', '{"models": 3}'])
def test_options_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        FakeOptions.from_json(text)
