"""The fake served over HTTP fails in the ways it is told to, and the engine makes of that what it makes of vLLM's."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from scheduler.engine import Generation, GenerationRequest
from scheduler.errors import EngineError, EngineUnavailable
from tests.contract.conftest import closing, serving
from workers.engines.fake import FakeEngine, FakeOptions
from workers.engines.fake_server import make_app
from workers.engines.vllm import VllmEngine


def request(**values: Any) -> GenerationRequest:
    usual: dict[str, Any] = {"request_id": "r", "n": 3, "tokens_max": 200, "seed": 5}
    messages = ({"role": "user", "content": "What is 12 + 9?"},)
    return GenerationRequest(model="fake", messages=messages, **(usual | values))


def ask(options: FakeOptions, *asked: GenerationRequest, patience_s: float = 60.0) -> list[Generation]:
    """Serve the fake with these options and ask it through the vLLM engine."""
    with asyncio.Runner() as runner, serving(runner, make_app(options)) as url:
        fast = VllmEngine(url, timeout_s=patience_s, backoff_s=0.001, tries=10)
        with closing(runner, fast) as engine:
            return [runner.run(engine.generate(one, asyncio.Event())) for one in asked]


def test_over_http_the_fake_says_what_it_says_in_process() -> None:
    [served] = ask(FakeOptions(seed=2), request())

    spoken = asyncio.run(FakeEngine(FakeOptions(seed=2)).generate(request(), asyncio.Event()))

    assert [sample.text for sample in served.samples] == [sample.text for sample in spoken.samples]
    assert served.usage == spoken.usage
    assert [s.logprob_mean for s in served.samples] == pytest.approx([s.logprob_mean for s in spoken.samples])


def test_a_server_that_is_overloaded_half_of_the_time_answers_in_the_end() -> None:
    generations = ask(FakeOptions(unavailable_rate=0.5), *(request(request_id=f"r-{i}") for i in range(10)))

    assert not any(generation.interrupted for generation in generations)


def test_a_server_that_dies_in_mid_answer_has_its_tokens_paid() -> None:
    [generation] = ask(FakeOptions(break_rate=1.0, break_after_tokens=8), request())

    assert generation.interrupted
    assert [sample.tokens for sample in generation.samples] == [8, 8, 8]


def test_a_server_that_always_dies_before_its_first_token_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        ask(FakeOptions(break_rate=1.0, break_after_tokens=0), request())


def test_a_server_that_sends_garbage_or_hangs_is_an_engine_error() -> None:
    for options in (FakeOptions(garbage_rate=1.0), FakeOptions(hang_rate=1.0)):
        with pytest.raises(EngineError):
            ask(options, request(), patience_s=1.0)


def test_a_server_with_a_wrong_meter_is_paid_what_was_allowed() -> None:
    [generation] = ask(FakeOptions(overrun_rate=1.0), request(tokens_max=10))

    assert sum(sample.tokens for sample in generation.samples) == generation.usage.completion == 30


def test_the_command_serves_streams_and_whole_answers() -> None:
    with command("--options", '{"models": ["m"]}') as url:
        body = {"model": "m", "messages": [{"role": "user", "content": "What is 12 + 9?"}], "n": 2, "seed": 1}

        answer = post(f"{url}/chat/completions", body)

        assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "stop"]
        assert answer["usage"]["completion_tokens"] == sum(
            len(choice["message"]["content"].split()) for choice in answer["choices"]
        )


def test_the_command_refuses_options_it_does_not_know() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.engines.fake_server", "--options", '{"sead": 1}'],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert "no option sead" in done.stderr


@contextmanager
def command(*arguments: str) -> Iterator[str]:
    """The fake server as a process of its own, on any free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.engines.fake_server", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        assert said is not None
        try:
            yield said.group()
        finally:
            process.terminate()


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer
