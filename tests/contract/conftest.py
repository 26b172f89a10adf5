"""The engines that have to keep the contract, each with an event loop to run it on."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from aiohttp import web

from scheduler.engine import Engine, GenerationRequest
from tests.llm import LlmServer
from workers.engines.fake import FakeEngine, FakeOptions
from workers.engines.fake_server import make_app
from workers.engines.vllm import VllmEngine

T = TypeVar("T")
SLOW_ENOUGH_TO_ABORT = FakeOptions(tokens_median=100, tokens_per_s=2000.0, first_token_s=0.01, time_scale=1.0)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One engine under test: what it serves, and how to run it."""

    engine: Engine
    model: str
    runner: asyncio.Runner
    busy: Callable[[], float] = field(default=lambda: 0.0)
    """How many requests the server behind the engine is running."""

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def request(self, question: str = "What is 12 + 9?", **values: Any) -> GenerationRequest:
        """A wave of one question; what is not named is as most waves are."""
        usual: dict[str, Any] = {"request_id": "r-1", "n": 1, "tokens_max": 64, "temperature": 0.8, "seed": 7}
        messages = ({"role": "user", "content": question},)
        return GenerationRequest(model=self.model, messages=messages, **(usual | values))


@pytest.fixture(params=["fake", "fake_over_http", pytest.param("vllm", marks=pytest.mark.vllm)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each engine in turn."""
    if request.param == "vllm":
        llm: LlmServer = request.getfixturevalue("llm")
        with asyncio.Runner() as runner, closing(runner, VllmEngine(llm.url)) as engine:
            yield Subject(engine=engine, model=llm.name, runner=runner, busy=lambda: running(llm.url))
    elif request.param == "fake":
        with asyncio.Runner() as runner:
            yield Subject(engine=FakeEngine(SLOW_ENOUGH_TO_ABORT), model="fake", runner=runner)
    else:
        with (
            asyncio.Runner() as runner,
            serving(runner, make_app(SLOW_ENOUGH_TO_ABORT)) as url,
            closing(runner, VllmEngine(url)) as engine,
        ):
            yield Subject(engine=engine, model="fake", runner=runner)


@contextmanager
def closing(runner: asyncio.Runner, engine: VllmEngine) -> Iterator[VllmEngine]:
    """The engine, whose connections are closed afterwards."""
    try:
        yield engine
    finally:
        runner.run(engine.close())


@contextmanager
def serving(runner: asyncio.Runner, app: web.Application) -> Iterator[str]:
    """The application on a free port, alive while the runner runs something."""
    site = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)

    async def start() -> str:
        await site.setup()
        await web.TCPSite(site, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{site.addresses[0][1]}/v1"

    url = runner.run(start())
    try:
        yield url
    finally:
        runner.run(site.cleanup())


def running(url: str) -> float:
    """What vLLM's metrics say of requests in progress, waiting ones included."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))
