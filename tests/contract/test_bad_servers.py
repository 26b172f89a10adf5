"""What the vLLM engine makes of servers that refuse, break, lie, babble or fall silent."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest

from scheduler.engine import Generation, GenerationRequest
from scheduler.errors import EngineError, EngineRejected, EngineUnavailable
from scheduler.settings import Settings
from scheduler.types import Usage
from workers.engines import make_engine
from workers.engines.vllm import VllmEngine, encode

Answer = bytes | None
"""What a server writes before it closes the connection; None keeps it open and says nothing."""
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def refused(status: int, message: str = "no", **headers: str) -> bytes:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode() + body


def event(index: int, text: str, *, tokens: int | None = None, finish: str | None = None, logprobs: int = 0) -> bytes:
    choice: dict[str, Any] = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    if logprobs:
        choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.5}] * logprobs}
    chunk: dict[str, Any] = {"choices": [choice]}
    if tokens is not None:
        chunk["usage"] = {"prompt_tokens": 11, "completion_tokens": tokens}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def total(completion: int, **details: Any) -> bytes:
    usage = {"prompt_tokens": 11, "completion_tokens": completion, **details}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


GOOD = OK + event(0, "It is 21.", tokens=4, finish="stop") + total(4) + DONE


class Scripted:
    """A server that gives its n-th connection the n-th answer, and the last one to all that follow."""

    def __init__(self, *answers: Answer, stays_open: bool = False) -> None:
        self.answers = answers
        self.stays_open = stays_open
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self.answers[min(self.connections, len(self.answers) - 1)]
        self.connections += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer or b"")
            await writer.drain()
            if answer is None or self.stays_open:
                await reader.read()
                while await reader.read():
                    pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def ask(
    server: Scripted,
    *,
    n: int = 1,
    tokens_max: int = 32,
    abort_after_s: float | None = None,
    settings: Settings | None = None,
) -> Generation:
    """Send one wave to the server and bring back what the engine makes of it."""

    async def asked() -> Generation:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/v1"
        limited = settings and make_engine(settings.model_copy(update={"llm_url": url}))
        engine = limited or VllmEngine(url, timeout_s=60.0, backoff_s=0.01)
        abort = asyncio.Event()
        if abort_after_s is not None:
            asyncio.get_running_loop().call_later(abort_after_s, abort.set)
        try:
            return await engine.generate(request(n=n, tokens_max=tokens_max), abort)
        finally:
            await engine.close()
            listening.close()
            await asyncio.sleep(0.02)

    return asyncio.run(asked())


def request(**values: Any) -> GenerationRequest:
    usual: dict[str, Any] = {"request_id": "r", "n": 1, "tokens_max": 32}
    messages = ({"role": "user", "content": "What is 12 + 9?"},)
    return GenerationRequest(model="m", messages=messages, **(usual | values))


def test_an_overloaded_server_is_asked_again() -> None:
    server = Scripted(refused(429), refused(503), GOOD)

    generation = ask(server)

    assert generation.samples[0].text == "It is 21."
    assert generation.usage == Usage(prompt=11, completion=4)
    assert server.connections == 3


def test_a_server_that_stays_overloaded_is_unavailable() -> None:
    server = Scripted(refused(503))

    with pytest.raises(EngineUnavailable):
        ask(server)

    assert server.connections == 4


def test_an_abort_ends_the_wait_for_an_overloaded_server() -> None:
    async def asked() -> Generation:
        engine = VllmEngine("http://127.0.0.1:9/v1", backoff_s=60.0)
        abort = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, abort.set)
        try:
            return await engine.generate(request(), abort)
        finally:
            await engine.close()

    started = time.monotonic()
    generation = asyncio.run(asked())

    assert generation == Generation(samples=(), usage=Usage(), interrupted=True)
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_there_is_unavailable() -> None:
    async def asked() -> None:
        engine = VllmEngine("http://127.0.0.1:9/v1", backoff_s=0.01)
        try:
            with pytest.raises(EngineUnavailable):
                await engine.generate(request(), asyncio.Event())
            with pytest.raises(EngineUnavailable):
                await engine.llms()
        finally:
            await engine.close()

    asyncio.run(asked())


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_carries_the_servers_words_and_is_not_repeated(status: int) -> None:
    server = Scripted(refused(status, "max_tokens is too large"))

    with pytest.raises(EngineRejected, match="max_tokens is too large"):
        ask(server)

    assert server.connections == 1


def test_an_internal_error_is_not_repeated() -> None:
    server = Scripted(refused(500, "boom"))

    with pytest.raises(EngineError, match="boom") as caught:
        ask(server)

    assert type(caught.value) is EngineError
    assert server.connections == 1


def test_a_dead_engine_behind_a_living_server_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        ask(Scripted(refused(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")))


def test_a_server_that_never_answers_ends_by_timeout() -> None:
    started = time.monotonic()

    with pytest.raises(EngineError, match="too long"):
        ask(Scripted(None), settings=Settings(engine_timeout_s=1.0))

    assert time.monotonic() - started < 5


def test_an_abort_ends_the_wait_for_a_server_that_never_answers() -> None:
    generation = ask(Scripted(None), abort_after_s=0.1)

    assert generation == Generation(samples=(), usage=Usage(), interrupted=True)


@pytest.mark.timeout(60)
def test_a_server_that_falls_silent_in_mid_answer_is_cut_off_and_paid() -> None:
    silent = Scripted(OK + event(0, "It is", tokens=2), stays_open=True)

    generation = ask(silent, settings=Settings(engine_timeout_s=3600.0, engine_silence_s=0.3))

    assert generation.interrupted
    assert generation.usage == Usage(prompt=11, completion=2)
    assert generation.samples[0].finish_reason == "aborted"


def test_a_connection_lost_in_mid_answer_keeps_what_came() -> None:
    server = Scripted(OK + event(0, "It is", tokens=2) + event(1, "So", tokens=1) + b'data: {"choi')

    generation = ask(server, n=2)

    assert generation.interrupted
    assert [(s.text, s.tokens, s.finish_reason) for s in generation.samples] == [
        ("It is", 2, "aborted"),
        ("So", 1, "aborted"),
    ]
    assert generation.usage == Usage(prompt=11, completion=3)
    assert server.connections == 1


def test_a_sample_that_had_ended_keeps_its_end_when_the_connection_is_lost() -> None:
    generation = ask(Scripted(OK + event(0, "21", tokens=1, finish="stop") + event(1, "It", tokens=1)), n=2)

    assert [sample.finish_reason for sample in generation.samples] == ["stop", "aborted"]


def test_a_connection_lost_before_the_first_token_is_tried_again() -> None:
    server = Scripted(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", GOOD)

    assert not ask(server).interrupted
    assert server.connections == 3


def test_an_error_in_the_stream_before_the_first_token_is_raised() -> None:
    fault = b'data: {"error": {"message": "too many tokens", "code": 400}}\n\n'

    with pytest.raises(EngineRejected, match="too many tokens"):
        ask(Scripted(OK + fault + DONE))


def test_an_error_in_the_stream_after_the_first_token_interrupts() -> None:
    fault = b'data: {"error": {"message": "boom", "code": 500}}\n\n'

    generation = ask(Scripted(OK + event(0, "It", tokens=1) + fault + DONE))

    assert generation.interrupted
    assert generation.usage.completion == 1


def test_without_usage_the_logprobs_are_counted() -> None:
    stream = event(0, "It is", logprobs=2) + event(1, "21", logprobs=1, finish="stop")
    stream += event(0, " 21.", logprobs=3, finish="stop")

    generation = ask(Scripted(OK + stream + DONE), n=2)

    assert [sample.tokens for sample in generation.samples] == [5, 1]
    assert generation.usage.completion == 6
    assert generation.usage.prompt >= 5


def test_without_usage_and_logprobs_the_count_is_rather_high() -> None:
    generation = ask(Scripted(OK + event(0, "twenty-one it is", finish="stop") + DONE))

    assert 4 <= generation.samples[0].tokens <= 16
    assert generation.usage.completion == generation.samples[0].tokens


def test_a_total_alone_is_split_by_what_each_sample_said() -> None:
    stream = event(0, "a" * 30, finish="stop") + event(1, "a" * 60, finish="stop") + total(9)

    generation = ask(Scripted(OK + stream + DONE), n=2)

    assert [sample.tokens for sample in generation.samples] == [3, 6]
    assert generation.usage.completion == 9


def test_no_more_is_billed_than_was_allowed() -> None:
    stream = event(0, "21", tokens=5000, finish="stop") + event(1, "21", tokens=3, finish="stop") + total(9000)

    generation = ask(Scripted(OK + stream + DONE), n=2, tokens_max=32)

    assert generation.usage.completion == sum(sample.tokens for sample in generation.samples) <= 64
    assert generation.complaint is not None


def test_an_honest_server_is_not_complained_of() -> None:
    assert ask(Scripted(GOOD)).complaint is None


def test_a_server_that_ignores_max_tokens_is_cut_off_and_paid_for_what_arrived() -> None:
    stream = b"".join(event(0, "word ", logprobs=1, tokens=count) for count in range(1, 80))

    generation = ask(Scripted(OK + stream, stays_open=True), tokens_max=32)

    assert generation.interrupted
    assert generation.usage.completion == sum(sample.tokens for sample in generation.samples) == 33
    assert generation.complaint == "It made or reported 33 tokens for a sample of at most 32."


def test_more_samples_than_were_asked_for_are_complained_of_and_the_first_ones_kept() -> None:
    generation = ask(Scripted(OK + event(0, "21", tokens=2, finish="stop") + event(1, "22", tokens=2) + DONE))

    assert [sample.text for sample in generation.samples] == ["21"]
    assert "choice 1" in str(generation.complaint)


@pytest.mark.parametrize("count", ["-5", "1" + "0" * 30, '"many"', "1e400", "[4]", 'null, "prompt_tokens": -1'])
def test_a_usage_that_is_none_is_complained_of_and_the_tokens_are_counted(count: str) -> None:
    usage = b'data: {"choices": [], "usage": {"completion_tokens": %s}}\n\n' % count.encode()

    generation = ask(Scripted(OK + event(0, "It is 21.", logprobs=4, finish="stop") + usage + DONE))

    assert (generation.usage.completion, generation.interrupted) == (4, False)
    assert generation.complaint is not None


def test_a_prompt_of_more_tokens_than_bytes_is_complained_of_and_not_billed() -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9000000000000, "completion_tokens": 4}}\n\n'

    generation = ask(Scripted(OK + event(0, "It is 21.", logprobs=4, finish="stop") + usage + DONE))

    assert generation.usage.prompt < 100
    assert "prompt" in str(generation.complaint)


def test_reasoning_and_tool_calls_are_put_together() -> None:
    def chunk(delta: dict[str, Any], tokens: int, finish: str | None = None) -> bytes:
        usage = {
            "prompt_tokens": 11,
            "completion_tokens": tokens,
            "completion_tokens_details": {"reasoning_tokens": min(tokens, 3)},
            "prompt_tokens_details": {"cached_tokens": 8},
        }
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n"

    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":'}}
    stream = chunk({"reasoning": "Let me "}, 2) + chunk({"reasoning_content": "add."}, 3)
    stream += chunk({"tool_calls": [call]}, 5)
    stream += chunk({"tool_calls": [{"index": 0, "function": {"arguments": " 12}"}}]}, 7, "tool_calls")

    [sample] = ask(Scripted(OK + stream + DONE)).samples

    assert sample.message == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Let me add.",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 12}'}}],
    }
    assert (sample.tokens, sample.reasoning_tokens, sample.finish_reason) == (7, 3, "tool_calls")


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\xfe garbage\r\n\r\n",
        b"HTTP/9.9 banana\r\n\r\n",
        OK + b"<html>hello</html>",
        OK + b"data: {not json}\n\n",
        OK + b"data: \xff\xfe\n\n",
        OK + b'data: {"choices": [{"index": 99, "delta": {"content": "x"}}]}\n\n',
        OK + b'data: {"choices": [{"index": -1}]}\n\n',
        OK + b'data: {"choices": 3}\n\n',
        OK + b'data: {"choices": [], "usage": {"completion_tokens": -5}}\n\n',
        OK + DONE,
        OK,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\nnot gzip",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhello",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 40_000 + b"\r\n",
    ],
)
def test_babble_is_an_engine_error_and_nothing_else(answer: bytes) -> None:
    with pytest.raises(EngineError):
        ask(Scripted(answer))


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes_are_an_engine_error_or_an_interruption(seed: int) -> None:
    random_bytes = random.Random(seed)
    good = bytearray(GOOD)
    for _ in range(random_bytes.randrange(1, 8)):
        good[random_bytes.randrange(len(good))] = random_bytes.randrange(256)

    try:
        generation = ask(Scripted(bytes(good)), settings=Settings(engine_timeout_s=1.0))  # it may wait for more
    except EngineError:
        return

    assert generation.usage.completion == sum(sample.tokens for sample in generation.samples)


def test_a_clients_parameters_pass_but_never_lift_the_budget() -> None:
    params = {"top_p": 0.5, "max_completion_tokens": 9999, "n": 50, "stream": False, "allotd": {}}

    body = json.loads(encode(request(n=2, params=params)))

    assert body["top_p"] == 0.5
    assert (body["n"], body["max_tokens"], body["stream"]) == (2, 32, True)
    assert not body.keys() & {"max_completion_tokens", "allotd"}


def test_a_client_may_ask_for_less_than_the_budget() -> None:
    assert json.loads(encode(request(params={"max_completion_tokens": 5})))["max_tokens"] == 5


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(EngineRejected):
        encode(request(params={"stop": object()}))
