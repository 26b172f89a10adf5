"""What allotd asks of a model server, in one protocol; `workers.engines` has the real ones and the shipped fake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.types import Json, Llm, Sample, Usage

Progress = Callable[[Usage], None]
"""Called as tokens arrive, with the usage of the whole request so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One wave: `n` samples of one prompt, each of `tokens_max` tokens at most.

    `params` are further OpenAI chat parameters (top_p, stop, response_format, tools, ...), passed through as they are.
    `seed` makes the wave repeatable where the server supports it.
    """

    request_id: str
    model: str
    messages: tuple[Json, ...]
    n: int
    tokens_max: int
    temperature: float | None = None
    seed: int | None = None
    logprobs: bool = True
    params: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What a wave produced: `samples` in the server's order (at most `n`), and the usage to bill.

    `interrupted` says that the request was cut before its end, by us or by the server; its samples then hold what had
    been generated, with finish_reason "aborted", and the usage counts it. `complaint` is a sentence about what the
    server did or reported that no honest server does; whoever reads it asks that server no more.
    """

    samples: tuple[Sample, ...]
    usage: Usage
    interrupted: bool = False
    complaint: str | None = None


class Engine(Protocol):
    """A model server that answers waves."""

    async def generate(self, request: GenerationRequest, abort: Abort, progress: Progress | None = None) -> Generation:
        """Generate one wave.

        Returns what was generated also when `abort` is set on the way (with `interrupted`), or when the server breaks
        off after the first token.

        Raises:
            EngineUnavailable: nothing was generated; trying again costs nothing.
            EngineRejected: the server refused the request (400-class); trying again is useless.
            EngineError: the server failed or timed out in another way before any token arrived.
        """
        ...

    async def llms(self) -> tuple[Llm, ...]:
        """The models this server serves. Raises EngineUnavailable."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Abort(Protocol):
    """A flag that can be awaited: `asyncio.Event` is one."""

    def is_set(self) -> bool: ...
    async def wait(self) -> object: ...
