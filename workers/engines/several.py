"""One engine of several model servers: each wave goes to one that serves its model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

import structlog

from scheduler.engine import Abort, Engine, Generation, GenerationRequest, Progress
from scheduler.errors import EngineError, EngineUnavailable
from scheduler.types import Llm

LIST_TIMEOUT_S = 5.0
"""One server that hangs must not keep the worker from its heartbeat, on which the others' waves depend."""
AVOIDED_S = 5.0
"""How long a server that was away is passed over where another serves the same model."""

log = structlog.get_logger()


class SeveralServers:
    """Sends each wave to the server of its model that has the fewest; what is away is passed over for a moment."""

    def __init__(self, servers: Mapping[str, Engine]) -> None:
        self._servers = dict(servers)
        self._serves: dict[str, frozenset[str]] = {}
        self._running: Counter[str] = Counter()
        self._avoided_until: dict[str, float] = {}

    async def generate(self, request: GenerationRequest, abort: Abort, progress: Progress | None = None) -> Generation:
        """Generate one wave; see `scheduler.engine.Engine`."""
        if not any(request.model in served for served in self._serves.values()):
            await self.llms()
        address = self._choose(request.model)
        self._running[address] += 1
        try:
            return await self._servers[address].generate(request, abort, progress)
        except EngineUnavailable:
            self._avoided_until[address] = time.monotonic() + AVOIDED_S
            raise
        finally:
            self._running[address] -= 1

    async def llms(self) -> tuple[Llm, ...]:
        """The models of all servers that answer, each once. Raises what one of them said where none does."""
        told = await asyncio.gather(*(_listed(server) for server in self._servers.values()), return_exceptions=True)
        found: dict[str, Llm] = {}
        failures: list[BaseException] = []
        for address, answer in zip(self._servers, told, strict=True):
            if isinstance(answer, EngineError):
                log.info("engine_unavailable", engine=address, message=answer.message)
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self._serves[address] = frozenset(llm.name for llm in answer)
                found |= {llm.name: llm for llm in answer if llm.name not in found}
        if not found and failures:
            raise failures[0]
        return tuple(found.values())

    async def close(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    def _choose(self, model: str) -> str:
        serving = [address for address in self._servers if model in self._serves.get(address, ())]
        if not serving:
            raise EngineUnavailable(f"No model server serves {model} just now.")
        now = time.monotonic()
        return min(serving, key=lambda each: (self._avoided_until.get(each, 0.0) > now, self._running[each]))


async def _listed(server: Engine) -> tuple[Llm, ...]:
    try:
        async with asyncio.timeout(LIST_TIMEOUT_S):
            return await server.llms()
    except TimeoutError:
        raise EngineUnavailable(f"It did not list its models within {LIST_TIMEOUT_S:g} s.") from None
