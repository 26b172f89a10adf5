"""What money costs: pairs of reserve and settle on one hot tenant, and tokens per second with all of it in the way.

The first ratio is on PostgreSQL with fsync on, 16 clients each: ours are 16 coroutines of one process that hold and
settle waves through the ledger and its group commit (tenant, cap, batch, query, attempt, wave, entries and sample); the
others are 16 threads with a connection each, which for a pair run two transactions of one conditional UPDATE of one hot
row and one INSERT.

The second compares the whole of allotd (daemon, one worker, Valkey, PostgreSQL with fsync on) with a plain asyncio
loop, both on the fake engine at the pace of a real one, with 500 queries in flight and the same completions.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Entry, LlmRow, Tenant, Wave
from scheduler import ledger
from scheduler.audit import discrepancies
from scheduler.database import reading
from scheduler.engine import GenerationRequest
from scheduler.ledger import Funded, Settlement, WaveRequest
from scheduler.requests import ENDPOINT
from scheduler.transactions import GroupCommit
from scheduler.types import Sample, Usage
from scheduler.wiring import utc_now
from tests.benchmarks.figures import Figure, print_figures
from tests.benchmarks.parts import PARTS, cpu_seconds, frozen, wait_for_batch
from tests.deployment import Deployment, deployment
from tests.factories import MODEL, add_batch, add_cap, add_query, add_tenant, fund, new_sessions
from tests.services import PostgresServer, postgres_server, valkey_server
from workers.engines.fake import FakeEngine, FakeOptions

ROUNDS = 5
CLIENTS = 16
PAIRS = 60
"""Per client and round."""
PAIRS_RATIO_MIN = 0.8
RICH_NANOUSD = 10**15

PACE_ROUNDS = 3
IN_FLIGHT = 500
QUERIES = 5_000
PACE = FakeOptions(tokens_median=100.0, first_token_s=0.2, tokens_per_s=50.0, time_scale=1.0, context_tokens=4096)
TOKENS_MAX = 512
CALM = {"tick_s": "0.2", "heartbeat_s": "5", "lease_s": "300", "redispatch_s": "300"}
"""Production's times; leases outlast the plain loop's turn."""
STEADY = (0.15, 0.75)
"""Between these shares of the completions the rate is taken: both sides are at full width there."""
PACE_RATIO_MIN = 0.95
TIMEOUT_S = 600.0


def run() -> list[Figure]:
    """Measure both, each side in turn, and print every round."""
    with postgres_server(survives_crashes=True) as server:
        return [pairs_figure(server), pace_figure(server)]


def pairs_figure(server: PostgresServer) -> Figure:
    """Pairs per second of the ledger over those of the bare statements."""
    ratios = []
    print(f"{'round':<8}{'bare pairs/s':>14}{'ledger pairs/s':>16}{'ratio':>8}")
    with new_sessions(server.new_database()) as sessions, BarePurse(server) as purse:
        clients = hot_tenant(sessions)
        ledger_pairs(sessions, clients, number=4)
        purse.pairs(number=4)
        for number in range(ROUNDS):
            sides = {"bare": partial(purse.pairs, PAIRS), "ours": partial(ledger_pairs, sessions, clients, PAIRS)}
            seconds = {side: sides[side]() for side in (sides if number % 2 == 0 else reversed(sides))}
            bare, ours = (CLIENTS * PAIRS / seconds[side] for side in ("bare", "ours"))
            ratios.append(ours / bare)
            print(f"{number:<8}{bare:>14.0f}{ours:>16.0f}{ratios[-1]:>8.2f}")
        with sessions() as session:
            assert list(discrepancies(session)) == []
            settled = session.scalar(select(func.count()).where(Entry.kind == "settle"))
            assert settled == CLIENTS * (4 + ROUNDS * PAIRS), settled
    name = f"reserve + settle pairs/s / bare UPDATE + INSERT pairs/s, {CLIENTS} clients"
    return Figure(name=name, rounds=tuple(ratios), at_least=PAIRS_RATIO_MIN)


def hot_tenant(sessions: sessionmaker[Session]) -> list[Funded]:
    """An attempt of each client, all of one tenant with a cap, in one batch with a limit."""
    with sessions.begin() as session:
        tenant = add_tenant(session)
        add_cap(session, tenant, RICH_NANOUSD)
        batch = add_batch(session, tenant, limit_nanousd=RICH_NANOUSD)
        return [fund(session, add_query(session, batch)) for _ in range(CLIENTS)]


def ledger_pairs(sessions: sessionmaker[Session], clients: Sequence[Funded], number: int) -> float:
    """Seconds in which every client holds and settles so many waves, one after the other."""
    transact = GroupCommit(sessions, utc_now)

    async def client(funded: Funded) -> None:
        for _ in range(number):
            wave = WaveRequest(funded=funded, samples=1, tokens_max=64, tokens_floor=64, prompt_tokens=40)
            hold = await transact.together(ledger.reserve_all, wave, key=funded.tenant_id)
            sample = Sample(text="The answer is 21.", tokens=20, answer="21", correct=True)
            usage = Usage(prompt=40, completion=20)
            used = Settlement(funded=funded, wave_id=hold.wave_id, usage=usage, latency_s=0.1, samples=(sample,))
            await transact.together(ledger.settle_all, used, key=funded.tenant_id)

    async def everyone() -> float:
        begun = time.perf_counter()
        await asyncio.gather(*map(client, clients))
        return time.perf_counter() - begun

    try:
        return asyncio.run(everyone())
    finally:
        transact.close()


class BarePurse:
    """One row that all clients take from and give back to, and a table of entries."""

    def __init__(self, server: PostgresServer) -> None:
        url = server.new_database().replace("postgresql+psycopg", "postgresql")
        self._connections = [psycopg.connect(url) for _ in range(CLIENTS)]
        self._keys = count()

    def __enter__(self) -> BarePurse:
        first = self._connections[0]
        first.execute("CREATE TABLE purses (id int PRIMARY KEY, held bigint, spent bigint, most bigint)")
        first.execute(
            "CREATE TABLE moves (id bigserial PRIMARY KEY, key text UNIQUE, purse int, held bigint, spent bigint)"
        )
        first.execute("INSERT INTO purses VALUES (1, 0, 0, %s)", (RICH_NANOUSD,))
        first.commit()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def pairs(self, number: int) -> float:
        """Seconds in which every client runs so many pairs of transactions, one after the other."""
        threads = [threading.Thread(target=self._client, args=(c, number)) for c in self._connections]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    def _client(self, connection: psycopg.Connection[Any], number: int) -> None:
        for _ in range(number):
            for held, spent in ((168, 0), (-168, 80)):
                changed = connection.execute(
                    "UPDATE purses SET held = held + %s, spent = spent + %s WHERE id = 1 AND held + spent + %s <= most",
                    (held, spent, max(held, 0)),
                )
                assert changed.rowcount == 1
                connection.execute(
                    "INSERT INTO moves (key, purse, held, spent) VALUES (%s, 1, %s, %s)",
                    (f"move:{next(self._keys)}", held, spent),
                )
                connection.commit()


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """One completion: when it had ended, in seconds, and its tokens."""

    at: float
    tokens: int


def pace_figure(server: PostgresServer) -> Figure:
    """Tokens per second through allotd over those of a plain loop, on the same fake engine."""
    ratios = []
    settings = {"fake_engine": msgspec.json.encode(PACE).decode(), "in_flight_max": str(IN_FLIGHT), **CALM}
    with (
        tempfile.TemporaryDirectory() as directory,
        valkey_server() as valkey,
        deployment(server.new_database(), valkey.url, Path(directory), **settings) as made,
    ):
        tenant_id = begin(made)
        through(made, tenant_id, list(questions("warm up", IN_FLIGHT)))
        print(f"\n{'round':<8}{'plain tok/s':>14}{'allotd tok/s':>16}{'ratio':>8}  processor seconds of allotd's parts")
        for number in range(PACE_ROUNDS):
            asked = list(questions(f"round {number}", QUERIES))
            before = cpu_seconds(made)
            ours = through(made, tenant_id, asked)
            cpu = ", ".join(f"{part} {seconds - before[part]:.1f}" for part, seconds in cpu_seconds(made).items())
            with frozen(made):
                plain = asyncio.run(straight(asked))
            assert sum(one.tokens for one in plain) == sum(one.tokens for one in ours), "not the same completions"
            rates = steady_rate(plain), steady_rate(ours)
            ratios.append(rates[1] / rates[0])
            print(f"{number:<8}{rates[0]:>14.0f}{rates[1]:>16.0f}{ratios[-1]:>8.3f}  {cpu}")
    name = f"tokens/s through allotd / plain loop, fake engine, {IN_FLIGHT} in flight"
    return Figure(name=name, rounds=tuple(ratios), at_least=PACE_RATIO_MIN)


def begin(made: Deployment) -> str:
    """A tenant with a cap, and running parts that have seen the model."""
    tenant_id = made.add_tenant()
    with made.sessions.begin() as session:
        add_cap(session, session.get_one(Tenant, tenant_id), RICH_NANOUSD)
    for part in PARTS:
        made.start(part)
    made.wait_for(lambda session: session.get(LlmRow, MODEL) is not None)
    return tenant_id


def questions(salt: str, number: int) -> Iterator[str]:
    """Prompts, each with a length and a difficulty of its own."""
    return (f"({salt}) What is {i} + {i % 89}? Answer with just the number." for i in range(number))


def through(made: Deployment, tenant_id: str, asked: Sequence[str]) -> list[Done]:
    """The questions as one batch; what the ledger says of its waves."""
    batch_id = made.submit(tenant_id, [line(question) for question in asked], metadata={"strategy": "direct"})
    wait_for_batch(made, batch_id, TIMEOUT_S)
    with reading(made.sessions) as session:
        rows = session.execute(select(Wave.settled_at, Wave.completion_tokens).where(Wave.batch_id == batch_id)).all()
    return [Done(at=row.settled_at.timestamp(), tokens=row.completion_tokens) for row in rows]


def line(question: str) -> dict[str, Any]:
    """A line of the batch. At temperature 0 the fake says the same to both sides."""
    body = {"model": MODEL, "messages": messages(question), "max_tokens": TOKENS_MAX, "temperature": 0}
    return {"custom_id": question, "method": "POST", "url": ENDPOINT, "body": body}


def messages(question: str) -> tuple[dict[str, str], ...]:
    """A chat of one turn."""
    return ({"role": "user", "content": question},)


async def straight(asked: Sequence[str]) -> list[Done]:
    """The questions to an engine of our own, as many in flight."""
    engine, never, places = FakeEngine(PACE), asyncio.Event(), asyncio.Semaphore(IN_FLIGHT)

    async def ask(question: str) -> Done:
        request = GenerationRequest(
            request_id=question,
            model=MODEL,
            messages=messages(question),
            n=1,
            tokens_max=TOKENS_MAX,
            temperature=0.0,
        )
        async with places:
            generation = await engine.generate(request, never)
            return Done(at=time.perf_counter(), tokens=generation.usage.completion)

    return await asyncio.gather(*map(ask, asked))


def steady_rate(done: Sequence[Done]) -> float:
    """Tokens per second while all places are taken: neither at the start nor while the last ones end."""
    in_order = sorted(done, key=lambda one: one.at)
    first, last = (int(share * len(in_order)) for share in STEADY)
    return sum(one.tokens for one in in_order[first:last]) / (in_order[last - 1].at - in_order[first - 1].at)


if __name__ == "__main__":
    print_figures(run())
