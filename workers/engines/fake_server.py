"""The fake engine behind HTTP, speaking vLLM's dialect of OpenAI's protocol: for load tests, and to be killed in tests.

Run it as `python -m workers.engines.fake_server --port 8000 --options '{"time_scale": 1.0}'`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import msgspec
from aiohttp import web

from scheduler.engine import GenerationRequest
from scheduler.errors import EngineError, EngineRejected, InvalidRequest
from scheduler.types import Json
from workers.engines.fake import (
    FakeEngine,
    FakeOptions,
    FakeSample,
    Fault,
    compose,
    overrun,
    prompt_tokens,
    sleep_or_abort,
)

BODY_BYTES_MAX = 64 * 1024 * 1024
GARBAGE = b"\x00\xff\xfe this is not HTTP \r\n\r\n\x80\x81"


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Body(msgspec.Struct):
    model: str
    messages: list[dict[str, Any]]
    n: int = 1
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    logprobs: bool | None = False
    stream: bool | None = False
    stream_options: _StreamOptions | None = None


def make_app(options: FakeOptions) -> web.Application:
    """The server as an aiohttp application."""
    server = _FakeServer(options)
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.add_routes(
        [
            web.get("/health", server.health),
            web.get("/metrics", server.metrics),
            web.get("/v1/models", server.models),
            web.post("/v1/chat/completions", server.chat_completions),
            web.post("/tokenize", server.tokenize),
            web.post("/faults", server.faults),
        ]
    )
    return app


class _FakeServer:
    """The routes."""

    def __init__(self, options: FakeOptions) -> None:
        self._told = options
        self._options = options
        self._engine = FakeEngine(options)
        self._running = 0

    async def health(self, _http: web.Request) -> web.Response:
        return web.Response()

    async def metrics(self, _http: web.Request) -> web.Response:
        """How many requests run, under vLLM's name."""
        return web.Response(text=f'vllm:num_requests_running{{engine="0"}} {float(self._running)}\n')

    async def models(self, _http: web.Request) -> web.Response:
        cards = [
            {"id": name, "object": "model", "root": name, "max_model_len": self._options.context_tokens}
            for name in self._options.models
        ]
        return web.json_response({"object": "list", "data": cards})

    async def tokenize(self, http: web.Request) -> web.Response:
        body = await http.json()
        if "messages" in body:
            count = prompt_tokens(tuple(body["messages"]))
        else:
            count = len(str(body.get("prompt", "")).split())
        return web.json_response(
            {"count": count, "max_model_len": self._options.context_tokens, "tokens": list(range(count))}
        )

    async def faults(self, http: web.Request) -> web.Response:
        """Behave from now on as at the start, but for the options given."""
        self._options = replace(self._told, **await http.json())
        self._engine.options = self._options
        return web.Response()

    async def chat_completions(self, http: web.Request) -> web.StreamResponse:
        """Answer as the engine would; faults happen to the connection itself."""
        self._running += 1
        try:
            body = msgspec.json.decode(await http.read(), type=_Body)
            request = self._request(http, body)
            samples = compose(self._options, request)
            fault = self._engine.next_fault(request.request_id)
            return await self._answer(http, body, request, samples, fault)
        except EngineRejected as error:
            return _refused(error.attributes["status"], error.message)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _refused(400, str(error))
        finally:
            self._running -= 1

    async def _answer(
        self,
        http: web.Request,
        body: _Body,
        request: GenerationRequest,
        samples: tuple[FakeSample, ...],
        fault: Fault | None,
    ) -> web.StreamResponse:
        if fault is Fault.UNAVAILABLE:
            return _refused(503, "The fake server is told to be overloaded.")
        if fault is Fault.RATE_LIMIT:
            return _refused(429, "The fake server is told to have a rate limit.")
        if fault is Fault.FAIL:
            return _refused(500, "The fake server is told to fail.")
        if fault is Fault.HANG:
            await sleep_or_abort(self._options.hang_s, asyncio.Event())
        if fault is Fault.GARBAGE and http.transport is not None:
            http.transport.write(GARBAGE)
            http.transport.close()
        if body.stream:
            return await self._stream(http, body, request, samples, fault)
        async for _ in self._engine.steps(samples, asyncio.Event(), fault):
            pass
        if fault is Fault.BREAK:
            _hang_up(http)
        return web.json_response(_whole(request, samples, fault))

    async def _stream(
        self,
        http: web.Request,
        body: _Body,
        request: GenerationRequest,
        samples: tuple[FakeSample, ...],
        fault: Fault | None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        chunks = _Chunks(body, request, samples, fault)
        told = 0
        with contextlib.suppress(ConnectionError):
            await response.write(chunks.opening())
            async for said in self._engine.steps(samples, asyncio.Event(), fault):
                await response.write(chunks.between(told, said))
                told = said
            if fault is Fault.BREAK:
                _hang_up(http)
            await response.write(chunks.closing())
        return response

    def _request(self, http: web.Request, body: _Body) -> GenerationRequest:
        messages: tuple[Json, ...] = tuple(body.messages)
        left = self._options.context_tokens - prompt_tokens(messages)
        tokens_max = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        return GenerationRequest(
            request_id=http.headers.get("X-Request-Id", uuid4().hex),
            model=body.model,
            messages=messages,
            n=body.n,
            tokens_max=left if tokens_max is None else tokens_max,
            temperature=body.temperature,
            seed=body.seed,
            logprobs=bool(body.logprobs),
        )


class _Chunks:
    """The events of one stream, in the order and with the usage that vLLM sends them."""

    def __init__(
        self, body: _Body, request: GenerationRequest, samples: tuple[FakeSample, ...], fault: Fault | None
    ) -> None:
        options = body.stream_options or _StreamOptions()
        self._request = request
        self._samples = samples
        self._prompt = prompt_tokens(request.messages)
        self._has_usage = options.include_usage
        self._has_running_usage = options.include_usage and options.continuous_usage_stats
        self._fault = fault
        self._head = {
            "id": f"chatcmpl-{request.request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.model,
        }

    def opening(self) -> bytes:
        return b"".join(
            self._event(index, {"role": "assistant", "content": ""}, 0) for index in range(len(self._samples))
        )

    def between(self, told: int, said: int) -> bytes:
        """What is new after `said` words, when `told` were known."""
        return b"".join(
            self._words(index, sample, told, said)
            for index, sample in enumerate(self._samples)
            if told < len(sample.words)
        )

    def closing(self) -> bytes:
        events = b""
        if self._has_usage:
            completion = sum(len(sample.words) for sample in self._samples)
            usage = _usage(self._prompt, _reported(completion, self._request, self._fault))
            events = _event({**self._head, "choices": [], "usage": usage})
        return events + b"data: [DONE]\n\n"

    def _words(self, index: int, sample: FakeSample, told: int, said: int) -> bytes:
        new = sample.words[told:said]
        content = (" " if told else "") + " ".join(new)
        return self._event(
            index,
            {"content": content},
            told + len(new),
            logprobs=_logprobs(sample, told, said) if self._request.logprobs else None,
            finish_reason=sample.finish_reason if said >= len(sample.words) else None,
        )

    def _event(
        self,
        index: int,
        delta: dict[str, str],
        tokens: int,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._has_running_usage:
            chunk["usage"] = _usage(self._prompt, tokens)
        return _event(chunk)


def _whole(request: GenerationRequest, samples: tuple[FakeSample, ...], fault: Fault | None) -> dict[str, Any]:
    completion = sum(len(sample.words) for sample in samples)
    return {
        "id": f"chatcmpl-{request.request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": " ".join(sample.words)},
                "logprobs": _logprobs(sample, 0, len(sample.words)) if request.logprobs else None,
                "finish_reason": sample.finish_reason,
            }
            for index, sample in enumerate(samples)
        ],
        "usage": _usage(prompt_tokens(request.messages), _reported(completion, request, fault)),
    }


def _reported(completion: int, request: GenerationRequest, fault: Fault | None) -> int:
    """The completion tokens as the server's meter says them."""
    if fault is Fault.OVERRUN:
        return overrun(request)
    return -1 if fault is Fault.MISREPORT else completion


def _logprobs(sample: FakeSample, told: int, said: int) -> dict[str, Any]:
    pairs = zip(sample.words[told:said], sample.logprobs[told:said], strict=True)
    return {"content": [{"token": word, "logprob": value, "top_logprobs": []} for word, value in pairs]}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "FakeError", "code": status}}, status=status)


def _hang_up(http: web.Request) -> None:
    """Reset the connection, as a killed server does."""
    if http.transport is not None:
        http.transport.abort()
    raise ConnectionResetError


async def serve(options: FakeOptions, host: str, port: int) -> None:
    """Serve until cancelled; prints the address, because port 0 takes any free one."""
    runner = web.AppRunner(make_app(options), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        print(f"fake engine on http://{host}:{runner.addresses[0][1]}/v1", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="Serve the fake engine as vLLM would.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--options", help="the fake engine's options as JSON")
    arguments = parser.parse_args()
    try:
        options = FakeOptions.from_json(arguments.options)
    except (InvalidRequest, EngineError) as error:
        parser.error(str(error))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options, arguments.host, arguments.port))


if __name__ == "__main__":
    main()
