"""Several model servers are one engine: each wave goes where its model is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from scheduler.engine import Abort, Generation, GenerationRequest, Progress
from scheduler.engines import engine_of
from scheduler.errors import EngineError, EngineRejected, EngineUnavailable, InvalidRequest
from scheduler.settings import Settings, one_address
from scheduler.types import Llm, Usage
from workers.engines import make_engine
from workers.engines.several import SeveralServers
from workers.engines.vllm import VllmEngine


class Server:
    """Serves some models, or is away."""

    def __init__(self, *models: str, away: EngineError | None = None) -> None:
        self.models, self.away = models, away
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_closed = False

    async def generate(self, request: GenerationRequest, abort: Abort, progress: Progress | None = None) -> Generation:
        self.asked.append(request.model)
        if self.away is not None:
            raise self.away
        await self.gate.wait()
        return Generation(samples=(), usage=Usage())

    async def llms(self) -> tuple[Llm, ...]:
        if self.away is not None:
            raise self.away
        return tuple(Llm(name=model, context_tokens=100) for model in self.models)

    async def close(self) -> None:
        self.is_closed = True


def wave(model: str) -> GenerationRequest:
    return GenerationRequest(request_id="r", model=model, messages=(), n=1, tokens_max=9)


def together(*servers: Server) -> SeveralServers:
    return SeveralServers({f"http://{i}/v1": server for i, server in enumerate(servers)})


async def ask(engine: SeveralServers, models: Sequence[str]) -> None:
    for model in models:
        await engine.generate(wave(model), asyncio.Event())


def test_each_wave_goes_to_the_server_of_its_model() -> None:
    small, large = Server("small"), Server("large", "larger")

    asyncio.run(ask(together(small, large), ["large", "small", "larger"]))

    assert (small.asked, large.asked) == (["small"], ["large", "larger"])


def test_of_servers_of_one_model_the_one_with_fewer_waves_is_asked() -> None:
    async def run() -> list[list[str]]:
        servers = Server("m"), Server("m")
        for server in servers:
            server.gate.clear()
        engine = together(*servers)
        await engine.llms()
        waves = [asyncio.create_task(engine.generate(wave("m"), asyncio.Event())) for _ in range(4)]
        await asyncio.sleep(0)
        for server in servers:
            server.gate.set()
        await asyncio.gather(*waves)
        return [server.asked for server in servers]

    assert asyncio.run(run()) == [["m", "m"], ["m", "m"]]


def test_a_server_that_is_away_is_passed_over_where_another_serves_the_model() -> None:
    async def run() -> None:
        first, second = Server("m"), Server("m")
        engine = together(first, second)
        await engine.llms()
        first.away = EngineUnavailable("gone")
        with pytest.raises(EngineUnavailable):
            await engine.generate(wave("m"), asyncio.Event())
        await ask(engine, ["m", "m"])
        assert (len(first.asked), len(second.asked)) == (1, 2)

    asyncio.run(run())


def test_all_models_are_listed_once_even_while_one_server_is_away() -> None:
    engine = together(Server("a", "b"), Server(away=EngineUnavailable("gone")), Server("b", "c"))

    assert [llm.name for llm in asyncio.run(engine.llms())] == ["a", "b", "c"]


def test_where_no_server_answers_what_the_first_said_is_told() -> None:
    engine = together(Server(away=EngineRejected("wrong key")), Server(away=EngineUnavailable("gone")))

    with pytest.raises(EngineRejected, match="wrong key"):
        asyncio.run(engine.llms())


def test_a_model_that_no_server_has_just_now_is_waited_for() -> None:
    with pytest.raises(EngineUnavailable, match="No model server serves large"):
        asyncio.run(ask(together(Server("small")), ["large"]))


def test_all_servers_are_closed() -> None:
    servers = Server("a"), Server("b")

    asyncio.run(together(*servers).close())

    assert all(server.is_closed for server in servers)


def test_the_settings_name_one_server_or_several() -> None:
    one = Settings(llm_url="http://user:secret@a:8000/v1/")
    two = Settings(llm_url="http://user:secret@a:8000/v1, http://b:8000/v1")

    assert isinstance(make_engine(one), VllmEngine)
    assert isinstance(make_engine(two), SeveralServers)
    assert (engine_of(one), engine_of(two)) == ("http://a:8000/v1", "http://a:8000/v1, http://b:8000/v1")


@pytest.mark.parametrize("text", ["", ",", "http://a/v1,http://b/v1"])
def test_where_one_server_is_meant_none_or_several_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="name one with --llm-url"):
        one_address(text)


def test_one_models_tokenizer_counts_no_prompts_of_several_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOTD_TOKENIZER_PATH", str(tmp_path))
    monkeypatch.setenv("ALLOTD_LLM_URL", "http://a/v1,http://b/v1")

    with pytest.raises(InvalidRequest, match="tokenizer_path is one model's"):
        Settings.from_env()


def test_a_server_that_hangs_keeps_nobody_waiting_for_the_others_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Server):
        async def llms(self) -> tuple[Llm, ...]:
            await asyncio.Event().wait()
            return ()

    monkeypatch.setattr("workers.engines.several.LIST_TIMEOUT_S", 0.01)

    assert [llm.name for llm in asyncio.run(together(Hanging(), Server("a")).llms())] == ["a"]
