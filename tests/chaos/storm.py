"""A storm of faults over a running deployment, and what it cost: money over a cap, lines lost, samples bought twice.

The faults are drawn from a seed before anything starts, so the same seed injects the same faults in the same order.
"""

from __future__ import annotations

import json
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, Cap, PlanRow, QueryRow, SampleRow, Tenant, Worker
from scheduler import caps
from scheduler.audit import discrepancies
from scheduler.core.periods import Period
from scheduler.states import BATCH_FINAL, QUERY_FINAL, USABLE, AttemptState, QueryState
from scheduler.wiring import utc_now
from tests.deployment import Deployment, deployment, sums
from tests.services import PostgresServer, ServiceFailed, free_port, postgres_server

WORK_TIMEOUT_S = 30.0
T = TypeVar("T")

WORKERS = ("worker-1", "worker-2", "worker-3")
DAEMONS = ("daemon-1", "daemon-2")
TENANTS = ("rich", "poor", "other")
ADMIN_KEY = "sk-allotd-storm"
CAP_NANOUSD = 3_000_000
"""The poor tenant's cap: a third of what its first batch costs, so that lines park and resume all through the storm."""

ENGINE = {
    "time_scale": 0.3,
    "tokens_per_s": 400.0,
    "tokens_median": 20.0,
    "first_token_s": 0.05,
    "unavailable_rate": 0.02,
    "break_rate": 0.03,
    "garbage_rate": 0.02,
    "hang_rate": 0.005,
    "hang_s": 60.0,
}
MISBEHAVIOURS: dict[str, dict[str, float]] = {
    "slow engine": {"time_scale": 3.0},
    "hanging engine": {"hang_rate": 0.5},
    "garbling engine": {"garbage_rate": 0.3},
    "failing engine": {"fail_rate": 0.3},
    "refusing engine": {"rate_limit_rate": 0.7},
    "miscounting engine": {"misreport_rate": 0.3},
}
"""How the engine behaves for a while. A frozen one is half open: the kernel takes connections and nobody answers."""
LINES = 120


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, and for how long."""

    kind: str
    target: str
    pause_s: float
    down_s: float


@dataclass(slots=True)
class Damage:
    """What a storm left behind; everything but the counts of faults and lines should be zero or empty."""

    faults: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    overspent_nanousd: int = 0
    lines_lost: int = 0
    bought_twice: int = 0
    batches_doubled: int = 0
    still_held: int = 0
    attempts_lost: int = 0
    discrepancies: list[str] = field(default_factory=list)

    def lines_of_report(self) -> Iterator[str]:
        """What happened, for people."""
        yield f"faults injected     {self.faults.total():>6}  {dict(sorted(self.faults.items()))}"
        yield f"lines               {self.lines:>6}  {dict(sorted(self.outcomes.items()))}"
        yield f"attempts taken back {self.attempts_lost:>6}"
        yield f"overspend           {self.overspent_nanousd:>6}  nano-dollars over any limit at any instant looked at"
        yield f"lines lost          {self.lines_lost:>6}"
        yield f"samples bought twice{self.bought_twice:>6}"
        yield f"batches made twice  {self.batches_doubled:>6}"
        yield f"money still held    {self.still_held:>6}  waves"
        yield f"books               {len(self.discrepancies):>6}  sums that do not add up {self.discrepancies[:3]}"

    @property
    def is_none(self) -> bool:
        """Whether nothing was lost, overspent or bought twice."""
        return not (
            self.overspent_nanousd
            or self.lines_lost
            or self.bought_twice
            or self.batches_doubled
            or self.still_held
            or self.discrepancies
        )


def draw_faults(seed: int, count: int) -> list[Fault]:
    """The faults of a seed."""
    chance = random.Random(seed)
    weights = {
        "kill worker": 6,
        "freeze worker": 3,
        "kill daemon": 3,
        "freeze daemon": 1,
        "kill api": 2,
        "kill engine": 2,
        "freeze engine": 1,
        "kill valkey": 2,
        "kill postgres": 2,
        **dict.fromkeys(MISBEHAVIOURS, 1),
    }
    targets: dict[str, Sequence[str]] = {"worker": WORKERS, "daemon": DAEMONS}
    faults = []
    for kind in chance.choices(list(weights), list(weights.values()), k=count):
        what = kind.split()[1]
        faults.append(
            Fault(
                kind=kind,
                target=chance.choice(targets.get(what, (what,))),
                pause_s=chance.uniform(0.1, 1.2),
                # A frozen worker wakes up after its lease is gone: a zombie.
                down_s=chance.uniform(2.0, 3.5) if kind == "freeze worker" else chance.uniform(0.0, 0.8),
            )
        )
    return faults


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What a storm rages over."""

    stack: Deployment
    postgres: PostgresServer
    api_port: int
    engine_port: int


def storm(seed: int, faults: int, logs: Path, say: Callable[[str], None] = lambda _: None) -> Damage:
    """Run a deployment on PostgreSQL, Valkey and the fake engine through a seed's faults; count the damage."""
    valkey_port, engine_port, api_port = free_port(), free_port(), free_port()
    with (
        postgres_server(survives_crashes=True) as postgres,
        deployment(
            postgres.new_database(),
            f"redis://127.0.0.1:{valkey_port}/0",
            logs,
            engine="vllm",
            llm_url=f"http://127.0.0.1:{engine_port}/v1",
            engine_timeout_s="5",
            in_flight_max="32",
            attempts_max="1000",
            admin_key=ADMIN_KEY,
        ) as stack,
    ):
        stack.arguments = {
            "valkey": ("--port", str(valkey_port)),
            "api": ("--port", str(api_port)),
            "engine": ("--port", str(engine_port), "--options", json.dumps(ENGINE | {"seed": seed})),
        }
        for name in ("valkey", "engine", "api", *WORKERS, *DAEMONS):
            stack.start(name)
        world = World(stack=stack, postgres=postgres, api_port=api_port, engine_port=engine_port)
        return _rage(world, draw_faults(seed, faults), say)


def _rage(world: World, faults: Sequence[Fault], say: Callable[[str], None]) -> Damage:
    damage, stack = Damage(), world.stack
    tenants = {name: stack.add_tenant(name) for name in TENANTS}
    _set_cap(stack, tenants["poor"], CAP_NANOUSD)
    batches = [_submit(world, name) for name in TENANTS]
    with _watched(stack, damage):
        for number, fault in enumerate(faults, start=1):
            time.sleep(fault.pause_s)
            _wait_for_work(stack)
            say(f"{number:>4}/{len(faults)} {fault.kind} {fault.target}")
            _inject(world, fault)
            damage.faults[fault.kind] += 1
            _again(lambda: _trust_engines(stack))
            if _open_lines(stack) < LINES:
                batches.append(_submit(world, TENANTS[number % len(TENANTS)]))
            if number % 5 == 0:
                _again(lambda: _raise_cap(stack, tenants["poor"]))
        _again(lambda: _set_cap(stack, tenants["poor"], 10**12))
        stack.wait_for(lambda session: _all_final(session, batches), timeout_s=240)
    _count(stack, batches, damage)
    return damage


def _inject(world: World, fault: Fault) -> None:
    stack, verb = world.stack, fault.kind.split()[0]
    if fault.target == "postgres":
        world.postgres.kill()
        time.sleep(fault.down_s)
        _start_again(world.postgres)
    elif fault.kind in MISBEHAVIOURS:
        with httpx.Client(base_url=f"http://127.0.0.1:{world.engine_port}", timeout=10) as engine:
            _asked_again(partial(engine.post, "/faults", json=MISBEHAVIOURS[fault.kind]))
            time.sleep(1.0 + fault.down_s)
            _asked_again(partial(engine.post, "/faults", json={}))
    elif verb == "freeze":
        stack.kill(fault.target, signal.SIGSTOP)
        time.sleep(fault.down_s)
        stack.kill(fault.target, signal.SIGCONT)
    else:
        stack.kill(fault.target, signal.SIGKILL)
        time.sleep(fault.down_s)
        stack.start(fault.target)


def _submit(world: World, tenant: str) -> str:
    """Hand in a batch through the API as a client does that tries again, with a key that makes it one batch."""
    lines = b"\n".join(json.dumps(line).encode() for line in sums(LINES, samples_max=6))
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "allotd-tenant": tenant}
    with httpx.Client(base_url=f"http://127.0.0.1:{world.api_port}", headers=headers, timeout=30) as api:
        upload = partial(api.post, "/v1/files", files={"file": ("lines.jsonl", lines)}, data={"purpose": "batch"})
        file = _asked_again(upload)
        batch = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        once = {"idempotency-key": secrets.token_hex(8)}
        return str(_asked_again(partial(api.post, "/v1/batches", json=batch, headers=once))["id"])


def _asked_again(ask: Callable[[], httpx.Response]) -> dict[str, Any]:
    """What was answered at last; while a server is away, or says that it cannot just now, it is asked again."""
    said = ""
    for _ in range(900):
        try:
            reply = ask()
        except httpx.TransportError as error:
            said = repr(error)
            time.sleep(0.1)
            continue
        if reply.is_success:
            found: dict[str, Any] = reply.json() if reply.content else {}
            return found
        assert reply.status_code == httpx.codes.SERVICE_UNAVAILABLE, reply.text
        said = reply.text
        time.sleep(0.1)
    raise TimeoutError(f"nobody answered: {said}")


def _trust_engines(stack: Deployment) -> None:
    """What an operator does once the engine is mended."""
    with stack.sessions.begin() as session:
        session.execute(update(Worker).values(quarantined_because=None))


def _start_again(postgres: PostgresServer) -> None:
    """Backends of the dead server may hold its shared memory for a moment."""
    for _ in range(20):
        try:
            return postgres.start()
        except ServiceFailed:
            time.sleep(0.5)
    return postgres.start()


@contextmanager
def _watched(stack: Deployment, damage: Damage) -> Iterator[None]:
    """Look at every limit again and again, and keep the worst that was ever seen."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            with suppress(DBAPIError), stack.sessions() as session:
                worst = session.scalar(_WORST_OVERSPEND) or 0
                damage.overspent_nanousd = max(damage.overspent_nanousd, worst)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


_WORST_OVERSPEND = text(
    """
    SELECT max(excess) FROM (
        SELECT held_nanousd + spent_nanousd - limit_nanousd AS excess FROM batches WHERE limit_nanousd IS NOT NULL
        UNION ALL
        SELECT held_nanousd + spent_nanousd - limit_nanousd FROM queries WHERE limit_nanousd IS NOT NULL
        UNION ALL
        SELECT p.held_nanousd + p.spent_nanousd - c.limit_nanousd FROM cap_periods p JOIN caps c ON c.id = p.cap_id
        WHERE c.removed_at IS NULL
    ) AS purses WHERE excess > 0
    """
)


def _count(stack: Deployment, batches: Sequence[str], damage: Damage) -> None:
    with stack.sessions() as session:
        rows = session.execute(
            select(QueryRow.state, func.count()).where(QueryRow.batch_id.in_(batches)).group_by(QueryRow.state)
        ).all()
        damage.outcomes.update({row[0]: row[1] for row in rows})
        damage.lines = LINES * len(batches)
        ended = sum(count for state, count in rows if state in QUERY_FINAL)
        answered_without = session.scalar(
            select(func.count()).where(QueryRow.state == QueryState.ANSWERED, QueryRow.chosen_sample_id.is_(None))
        )
        damage.lines_lost = damage.lines - ended + (answered_without or 0)
        usable = (
            select(SampleRow.query_id, func.count().label("drawn"))
            .where(SampleRow.finish_reason.in_(USABLE))
            .group_by(SampleRow.query_id)
            .subquery()
        )
        budget = (
            select(PlanRow.query_id, func.max(PlanRow.samples_max).label("budget"))
            .group_by(PlanRow.query_id)
            .subquery()
        )
        damage.bought_twice = int(
            session.scalar(
                select(func.coalesce(func.sum(usable.c.drawn - budget.c.budget), 0))
                .join(budget, budget.c.query_id == usable.c.query_id)
                .where(usable.c.drawn > budget.c.budget)
            )
            or 0
        )
        damage.batches_doubled = (session.scalar(select(func.count()).select_from(Batch)) or 0) - len(batches)
        damage.still_held = (
            session.scalar(select(func.count()).select_from(Tenant).where(Tenant.held_nanousd != 0)) or 0
        )
        damage.attempts_lost = (
            session.scalar(select(func.count()).select_from(Attempt).where(Attempt.state == AttemptState.LOST)) or 0
        )
        damage.discrepancies = [str(found) for found in discrepancies(session)]


def _all_final(session: Session, batches: Sequence[str]) -> bool:
    still_open = session.scalar(
        select(func.count()).where(Batch.id.in_(batches), Batch.state.not_in([str(state) for state in BATCH_FINAL]))
    )
    return still_open == 0


def _wait_for_work(stack: Deployment) -> None:
    """A fault that hits an idle deployment tries nothing: wait a while for a query that runs."""

    def running() -> int:
        with stack.sessions() as session:
            return session.scalar(select(func.count()).where(Attempt.state == AttemptState.RUNNING)) or 0

    deadline = time.monotonic() + WORK_TIMEOUT_S
    while not _again(running) and time.monotonic() < deadline:
        time.sleep(0.1)


def _open_lines(stack: Deployment) -> int:
    def count() -> int:
        with stack.sessions() as session:
            return (
                session.scalar(select(func.count()).where(QueryRow.state.in_([QueryState.QUEUED, QueryState.RUNNING])))
                or 0
            )

    return _again(count)


def _set_cap(stack: Deployment, tenant_id: str, limit_nanousd: int) -> None:
    with stack.sessions.begin() as session:
        tenant = session.get_one(Tenant, tenant_id)
        caps.set_cap(session, tenant, limit_nanousd=limit_nanousd, period=Period.TOTAL, now=utc_now())


def _raise_cap(stack: Deployment, tenant_id: str) -> None:
    with stack.sessions.begin() as session:
        session.execute(
            update(Cap).where(Cap.tenant_id == tenant_id).values(limit_nanousd=Cap.limit_nanousd + CAP_NANOUSD // 2)
        )


def _again(step: Callable[[], T]) -> T:
    """What the storm itself asks of the database is asked again until it is there."""
    for _ in range(100):
        try:
            return step()
        except DBAPIError:
            time.sleep(0.1)
    return step()
