"""Tokens per second through allotd, against the same requests sent straight to the same vLLM server.

Both sides ask the same questions with as many requests in flight, for answers that nearly all run to their last token;
each side's own tokens are divided by its own time. allotd runs as `allotd up` does: daemon and one worker on
SQLite and Valkey, on the cores it shares with vLLM. They are stopped in their tracks while the plain client runs.
Time counts from the first request to the server to the end of the last answer.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import func, select

from models.tables import LlmRow, PriceRow, QueryRow, Wave
from scheduler.wiring import utc_now
from tests.benchmarks.figures import Figure, print_figures
from tests.benchmarks.parts import PARTS, cpu_seconds, frozen, wait_for_batch
from tests.deployment import Deployment, deployment
from tests.llm import LlmServer, llm_server
from tests.services import valkey_server

ROUNDS = 3
IN_FLIGHT = 32
REQUESTS = 3 * IN_FLIGHT
TOKENS = 64
RATIO_MIN = 0.90
EMBEDDED = {
    "engine": "vllm",
    "in_flight_max": str(IN_FLIGHT),
    "tick_s": "0.2",
    "heartbeat_s": "5",
    "lease_s": "60",
    "redispatch_s": "30",
}
"""Production's times; the lease outlasts the plain client's turn."""
BATCH_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one side did in one round."""

    tokens: int
    seconds: float
    cpu_s: dict[str, float]
    """Processor time by part."""

    @property
    def tokens_per_s(self) -> float:
        """The rate."""
        return self.tokens / self.seconds


def run() -> list[Figure]:
    """Let both sides run in turn, and in turn be first; print every round."""
    with (
        tempfile.TemporaryDirectory() as directory,
        llm_server(Path(directory) / "vllm.log") as server,
        valkey_server() as valkey,
        deployment(
            f"sqlite:///{directory}/allotd.db", valkey.url, Path(directory), llm_url=server.url, **EMBEDDED
        ) as made,
    ):
        tenant_id = begin(made, server)
        bodies = list(requests(server.name, "warm up", IN_FLIGHT))
        straight(server, made, bodies)
        through(made, tenant_id, bodies)
        print(
            f"{'round':<8}{'straight tok/s':>16}{'allotd tok/s':>14}{'ratio':>8}  processor seconds of allotd's parts"
        )
        ratios = []
        for number in range(ROUNDS):
            bodies = list(requests(server.name, f"round {number}", REQUESTS))
            sides = {
                "straight": partial(straight, server, made, bodies),
                "through": partial(through, made, tenant_id, bodies),
            }
            runs = {side: sides[side]() for side in (sides if number % 2 == 0 else reversed(sides))}
            plain, ours = runs["straight"], runs["through"]
            ratios.append(ours.tokens_per_s / plain.tokens_per_s)
            cpu = ", ".join(f"{part} {seconds:.1f}" for part, seconds in ours.cpu_s.items())
            print(f"{number:<8}{plain.tokens_per_s:>16.1f}{ours.tokens_per_s:>14.1f}{ratios[-1]:>8.3f}  {cpu}")
    name = f"tokens/s through allotd / straight to vLLM, {IN_FLIGHT} in flight"
    return [Figure(name=name, rounds=tuple(ratios), at_least=RATIO_MIN)]


def begin(made: Deployment, server: LlmServer) -> str:
    """A tenant, a price, and running parts that have seen the model."""
    now = utc_now()
    tenant_id = made.add_tenant()
    with made.sessions.begin() as session:
        prices = {"prompt_nanousd": 50, "cached_nanousd": 50, "completion_nanousd": 200}
        session.add(PriceRow(model=server.name, effective_at=now, created_at=now, **prices))
    for part in PARTS:
        made.start(part)
    made.wait_for(lambda session: session.get(LlmRow, server.name) is not None)
    return tenant_id


def requests(model: str, salt: str, number: int) -> Iterator[dict[str, Any]]:
    """Chat requests as a client writes them, every one with a prompt of its own."""
    for i in range(number):
        question = f"({salt}) A shelf holds {i} books and {i % 89} more arrive. Write a long story about it."
        yield {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": TOKENS,
            "temperature": 0.7,
        }


def straight(server: LlmServer, made: Deployment, bodies: Sequence[dict[str, Any]]) -> Run:
    """The plain client: as many requests in flight, each answer read whole."""
    with frozen(made):
        begun = time.perf_counter()
        tokens = asyncio.run(ask_all(server.url, bodies))
        return Run(tokens=tokens, seconds=time.perf_counter() - begun, cpu_s={})


async def ask_all(url: str, bodies: Sequence[dict[str, Any]]) -> int:
    """Send every request, `IN_FLIGHT` at a time; returns the completion tokens that the server counted."""
    places = asyncio.Semaphore(IN_FLIGHT)

    async def ask(client: aiohttp.ClientSession, body: dict[str, Any]) -> int:
        async with places, client.post(f"{url}/chat/completions", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
            return int(answer["usage"]["completion_tokens"])

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as client:
        return sum(await asyncio.gather(*(ask(client, body) for body in bodies)))


def through(made: Deployment, tenant_id: str, bodies: Sequence[dict[str, Any]]) -> Run:
    """The same requests as a batch, timed by what the ledger says of its waves."""
    before = cpu_seconds(made)
    lines = [
        {
            "custom_id": f"line-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"allotd": {"strategy": "direct"}},
        }
        for i, body in enumerate(bodies)
    ]
    batch_id = made.submit(tenant_id, lines)
    wait_for_batch(made, batch_id, BATCH_TIMEOUT_S)
    after = cpu_seconds(made)
    with made.sessions() as session:
        first, last = session.execute(
            select(func.min(Wave.reserved_at), func.max(Wave.settled_at)).where(Wave.batch_id == batch_id)
        ).one()
        tokens = session.scalar(select(func.sum(QueryRow.completion_tokens)).where(QueryRow.batch_id == batch_id))
    assert first is not None
    assert last is not None
    return Run(
        tokens=int(tokens or 0),
        seconds=(last - first).total_seconds(),
        cpu_s={part: after[part] - before[part] for part in PARTS},
    )


if __name__ == "__main__":
    print_figures(run())
