"""What every engine keeps: the fake in process, the fake over HTTP, and vLLM with a real model."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from scheduler.engine import Generation, GenerationRequest
from scheduler.errors import EngineRejected
from scheduler.tokens import counter_for, estimate_prompt
from scheduler.types import Json, Usage
from tests.contract.conftest import Subject

pytestmark = pytest.mark.timeout(600)  # the first test on vLLM waits for it to start

ENDLESS = {"ignore_eos": True}


def test_a_wave_brings_as_many_samples_as_asked(subject: Subject) -> None:
    generation = subject.run(subject.engine.generate(subject.request(n=4), asyncio.Event()))

    assert len(generation.samples) == 4
    assert not generation.interrupted
    assert all(sample.text and sample.finish_reason in {"stop", "length"} for sample in generation.samples)
    assert all(sample.message == {"role": "assistant", "content": sample.text} for sample in generation.samples)


def test_the_samples_tokens_add_up_to_the_usage(subject: Subject) -> None:
    generation = subject.run(subject.engine.generate(subject.request(n=5), asyncio.Event()))

    assert sum(sample.tokens for sample in generation.samples) == generation.usage.completion
    assert all(0 < sample.tokens <= 64 for sample in generation.samples)
    assert 0 < generation.usage.prompt < 100


def test_samples_of_one_wave_differ(subject: Subject) -> None:
    request = subject.request("Tell me something.", n=6, temperature=1.0)
    generation = subject.run(subject.engine.generate(request, asyncio.Event()))

    assert len({sample.text for sample in generation.samples}) > 1


def test_the_same_seed_brings_the_same_samples(subject: Subject) -> None:
    first = subject.run(subject.engine.generate(subject.request(n=3, request_id="a"), asyncio.Event()))
    second = subject.run(subject.engine.generate(subject.request(n=3, request_id="b"), asyncio.Event()))

    assert [sample.text for sample in first.samples] == [sample.text for sample in second.samples]


def test_another_seed_brings_other_samples(subject: Subject) -> None:
    first = subject.run(subject.engine.generate(subject.request(n=3, seed=7), asyncio.Event()))
    second = subject.run(subject.engine.generate(subject.request(n=3, seed=7000), asyncio.Event()))

    assert [sample.text for sample in first.samples] != [sample.text for sample in second.samples]


def test_no_sample_is_longer_than_allowed(subject: Subject) -> None:
    request = subject.request("Count from 1 to 100.", n=3, tokens_max=9, params=ENDLESS)
    generation = subject.run(subject.engine.generate(request, asyncio.Event()))

    assert [sample.tokens for sample in generation.samples] == [9, 9, 9]
    assert {sample.finish_reason for sample in generation.samples} == {"length"}


def test_the_mean_logprob_is_there_when_asked_for(subject: Subject) -> None:
    generation = subject.run(subject.engine.generate(subject.request(logprobs=True), asyncio.Event()))

    assert generation.samples[0].logprob_mean is not None
    assert -20 < generation.samples[0].logprob_mean <= 0


def test_progress_grows_to_the_final_usage(subject: Subject) -> None:
    seen: list[Usage] = []
    request = subject.request("Count from 1 to 100.", n=2, params=ENDLESS)

    generation = subject.run(subject.engine.generate(request, asyncio.Event(), seen.append))

    completions = [usage.completion for usage in seen]
    assert len(completions) > 1
    assert completions == sorted(completions)
    assert completions[-1] == generation.usage.completion
    assert {usage.prompt for usage in seen} == {generation.usage.prompt}


def test_an_abort_keeps_what_was_generated(subject: Subject) -> None:
    request = subject.request("Count from 1 to 1000.", n=2, tokens_max=1500, params=ENDLESS)

    generation = subject.run(aborted_at_first_tokens(subject, request))

    assert generation.interrupted
    assert generation.samples
    assert sum(sample.tokens for sample in generation.samples) == generation.usage.completion
    assert 0 < generation.usage.completion < 2 * 1500
    assert generation.usage.prompt > 0
    assert "aborted" in {sample.finish_reason for sample in generation.samples}


def test_an_aborted_request_leaves_the_server_idle(subject: Subject) -> None:
    request = subject.request("Count from 1 to 1000.", n=4, tokens_max=4000, params=ENDLESS)

    subject.run(aborted_at_first_tokens(subject, request))

    deadline = time.monotonic() + 10
    while subject.busy() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert subject.busy() == 0


def test_an_abort_before_the_start_generates_nothing(subject: Subject) -> None:
    abort = asyncio.Event()
    abort.set()

    generation = subject.run(subject.engine.generate(subject.request(), abort))

    assert generation == Generation(samples=(), usage=Usage(), interrupted=True)


def test_an_unknown_model_is_refused(subject: Subject) -> None:
    request = GenerationRequest(
        request_id="r", model="no-such", messages=({"role": "user", "content": "Hi"},), n=1, tokens_max=8
    )

    with pytest.raises(EngineRejected, match="no-such"):
        subject.run(subject.engine.generate(request, asyncio.Event()))


def test_a_prompt_longer_than_the_context_is_refused(subject: Subject) -> None:
    [llm] = subject.run(subject.engine.llms())

    with pytest.raises(EngineRejected):
        subject.run(subject.engine.generate(subject.request("word " * llm.context_tokens), asyncio.Event()))


def test_the_served_model_is_listed_with_its_context(subject: Subject) -> None:
    [llm] = subject.run(subject.engine.llms())

    assert llm.name == subject.model
    assert llm.context_tokens == 8192


SYSTEM: Json = {"role": "system", "content": "You answer with numbers only."}
QUESTION: Json = {"role": "user", "content": "What is 12 + 9?"}


@pytest.mark.parametrize("chat", [(QUESTION,), (SYSTEM, QUESTION)], ids=["alone", "with a system message"])
def test_the_estimate_of_a_prompt_is_what_the_server_bills(subject: Subject, chat: tuple[Json, ...]) -> None:
    [llm] = subject.run(subject.engine.llms())
    request = replace(subject.request(), messages=chat)

    billed = subject.run(subject.engine.generate(request, asyncio.Event())).usage.prompt

    estimate = estimate_prompt(llm, chat)
    assert billed <= estimate.tokens_max
    if counter_for(llm.tokenizer_path).is_exact:
        assert estimate.tokens == billed


def test_many_waves_at_once_are_all_answered(subject: Subject) -> None:
    async def all_at_once() -> list[Generation]:
        requests = (
            subject.request(f"What is {i} + 9?", request_id=f"r-{i}", n=2, tokens_max=8, seed=100 * i)
            for i in range(48)
        )
        return await asyncio.gather(*(subject.engine.generate(r, asyncio.Event()) for r in requests))

    generations = subject.run(all_at_once())

    assert [len(generation.samples) for generation in generations] == [2] * 48
    assert not any(generation.interrupted for generation in generations)


async def aborted_at_first_tokens(subject: Subject, request: GenerationRequest) -> Generation:
    """Generate, and abort as soon as the first tokens are known."""
    abort = asyncio.Event()

    def on_tokens(usage: Usage) -> None:
        if usage.completion:
            abort.set()

    return await subject.engine.generate(request, abort, on_tokens)
