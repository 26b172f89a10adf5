"""One worker process's life: an event loop that drives many queries at once, and the heartbeat that keeps its lease."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, LlmRow, QueryRow, Wave, Worker
from scheduler import recovery, settlement
from scheduler.engine import Engine
from scheduler.engines import engine_of
from scheduler.errors import EngineError
from scheduler.execution import Drive, Flags
from scheduler.outages import in_words
from scheduler.presence import Presence, present
from scheduler.settings import Settings
from scheduler.settlement import Work
from scheduler.states import AttemptState, BatchState, WaveState
from scheduler.transactions import GroupCommit
from scheduler.types import Llm, Usage
from scheduler.wiring import make_services
from workers.engines import make_engine

DRAIN_S = 3.0
"""How long running waves may go on after the worker was asked to stop; then they are cut and paid as they stand."""

STOP_FOR_S = DRAIN_S + 10.0
"""How long a worker that was asked to stop goes on trying to settle where the database is away."""

LLMS_EVERY_S = 30.0
"""How often the engine is asked again which models it serves."""

log = structlog.get_logger()

T = TypeVar("T")


class Runtime:
    """Takes attempts, drives them on one event loop, reports usage, and gives everything back when it stops."""

    def __init__(self, settings: Settings) -> None:
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._settings = settings
        self._room = threading.Semaphore(settings.in_flight_max + ahead(settings))
        self._places = asyncio.Semaphore(settings.in_flight_max)
        self._admitting = threading.Lock()
        self._draining = threading.Event()
        self._engine_seen = threading.Event()
        self._trusted = threading.Event()
        self._trusted.set()
        self._distrusted_at = float("-inf")
        self._abandoned_before: frozenset[int] = frozenset()
        self._flags: dict[int, Flags] = {}
        self._usage: dict[int, Usage] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Open the database, show that this process lives, start the event loop's thread and the engine in it."""
        self._services = make_services(self._settings)
        self._transact = GroupCommit(self._services.sessions, self._services.clock)
        self._pulse = GroupCommit(self._services.sessions, self._services.clock, name="pulse")
        self._presence: Presence = present(self._settings.database_url, self.worker_id, self._settings.heartbeat_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="drive", daemon=True)
        self._thread.start()
        self._engine: Engine = self._call(self._make_engine())

    def ready(self) -> None:
        """Begin to beat; the daemon plans for this worker from its first heartbeat on."""
        self._beating = asyncio.run_coroutine_threadsafe(self._beat(), self._loop)

    def admit(self, attempt_ids: Sequence[int]) -> None:
        """Claim and start attempts, waiting for room first. Called on Celery's threads."""
        if not self._engine_seen.wait(self._settings.redispatch_s) or self._draining.is_set():
            return  # nobody claimed them: the daemon sends them again
        with self._admitting:
            # Waiting keeps the next messages in the queue, for workers whose engine is trusted.
            while not self._trusted.wait(timeout=0.2):
                if self._draining.is_set():
                    return
            for _ in attempt_ids:
                while not self._room.acquire(timeout=0.2):
                    if self._draining.is_set():
                        return
        works: list[Work] = []
        try:
            works = self._claim(attempt_ids)
        except DBAPIError as error:
            log.error("claim_failed", message=in_words(error))  # the daemon sends them again
        finally:
            for _ in range(len(attempt_ids) - len(works)):
                self._room.release()
        for work in works:
            self._loop.call_soon_threadsafe(self._launch, work)

    @property
    def is_trusted(self) -> bool:
        """Whether this worker's engine is asked anything; not while it is quarantined."""
        return self._trusted.is_set()

    def drain(self) -> None:
        """Take nothing more; let running waves finish for a moment, then cut them and give their queries back."""
        self._draining.set()
        for transact in (self._transact, self._pulse):
            transact.give_up_after(STOP_FOR_S)
        self._loop.call_soon_threadsafe(self._stop_waves)

    def stop(self) -> None:
        """Settle what is running, say goodbye, and end the loop."""
        self._draining.set()
        self._call(self._finish())
        self._transact.close()
        self._pulse.close()
        self._presence.leave()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()
        self._services.sessions.kw["bind"].dispose()

    async def _make_engine(self) -> Engine:
        return make_engine(self._settings)

    def _claim(self, attempt_ids: Sequence[int]) -> list[Work]:
        claim = partial(settlement.claim, attempt_ids=attempt_ids, worker_id=self.worker_id, now=self._services.clock())
        return self._call(self._pulse.alone(claim))

    def _launch(self, work: Work) -> None:
        flags = Flags(stopping=self._draining.is_set() or not self._trusted.is_set())
        self._flags[work.funded.attempt_id] = flags
        drive = Drive(
            work=work,
            engine=self._engine,
            transact=self._transact,
            report=self._report,
            flags=flags,
            places=self._places,
            distrust=self._distrust,
        )
        task = self._loop.create_task(self._run(drive))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _report(self, wave_id: int, usage: Usage) -> None:
        self._usage[wave_id] = usage  # of the dict of the moment: each heartbeat takes one away

    async def _run(self, drive: Drive) -> None:
        attempt_id = drive.work.funded.attempt_id
        try:
            await drive.run()
        except DBAPIError as error:
            log.error("drive_failed", attempt=attempt_id, message=in_words(error))
        except Exception:
            # The attempt stays `running` under this worker; the next heartbeat finds it abandoned and takes it back.
            log.exception("drive_failed", attempt=attempt_id)
        finally:
            self._flags.pop(attempt_id, None)
            self._room.release()

    def _stop_waves(self) -> None:
        for flags in self._flags.values():
            flags.stopping = True
        self._loop.call_later(DRAIN_S, self._abort_waves)

    def _abort_waves(self) -> None:
        for flags in self._flags.values():
            if flags.stopping:
                flags.abort.set()

    def _distrust(self, because: str) -> None:
        """Ask this engine nothing more: let running waves finish for a moment, and give every query back."""
        self._distrusted_at = self._loop.time()
        if self._trusted.is_set():
            log.error("engine_quarantined", worker=self.worker_id, because=because)
            self._trusted.clear()
            self._stop_waves()

    def _trust(self) -> None:
        if not self._trusted.is_set():
            log.info("engine_released", worker=self.worker_id)
            self._trusted.set()

    async def _finish(self) -> None:
        self._stop_waves()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_FOR_S)
        if hasattr(self, "_beating"):
            self._beating.cancel()
        try:
            await self._pulse.alone(partial(_say_goodbye, worker_id=self.worker_id, now=self._services.clock()))
        except DBAPIError as error:
            log.error("goodbye_failed", message=in_words(error))  # the daemon sees by our lock that we are gone
        await self._engine.close()
        log.info("worker_stopped", worker=self.worker_id)

    async def _beat(self) -> None:
        """Tell the database that this worker lives and what its waves have used; learn what was called off."""
        loop = asyncio.get_running_loop()
        asked_at = float("-inf")
        while True:
            began = loop.time()
            try:
                if began - asked_at >= LLMS_EVERY_S or not self._engine_seen.is_set():
                    await self._meet_engine()
                    asked_at = began
                await self._heartbeat()
            except EngineError as error:
                log.info("engine_unavailable", message=error.message)
                if self._engine_seen.is_set():
                    await self._heartbeat()
            except DBAPIError as error:
                log.error("heartbeat_failed", message=in_words(error))
            except Exception:
                log.exception("heartbeat_failed")
            await asyncio.sleep(max(0.0, self._pace() - (loop.time() - began)))

    def _pace(self) -> float:
        return self._settings.heartbeat_s if self._engine_seen.is_set() else 0.5

    async def _meet_engine(self) -> None:
        llms = await self._engine.llms()
        await self._pulse.alone(partial(_remember_llms, llms=llms, now=self._services.clock()))
        if not self._engine_seen.is_set():
            log.info("engine_ready", llms=[llm.name for llm in llms], worker=self.worker_id)
        self._engine_seen.set()

    async def _heartbeat(self) -> None:
        usage, self._usage = self._usage, {}
        capacity = 0 if self._draining.is_set() else self._settings.in_flight_max
        now = self._services.clock()
        beat = partial(
            _write_heartbeat,
            worker_id=self.worker_id,
            engine=engine_of(self._settings),
            presence=self._presence.kind,
            capacity=capacity,
            usage=usage,
            now=now,
        )
        driven = dict(self._flags)  # as it was before the question: what is claimed meanwhile is not in the answer
        asked_at = asyncio.get_running_loop().time()
        standing, quarantined_because = await self._pulse.alone(beat)
        if quarantined_because is not None:
            self._distrust(quarantined_because)
        elif asked_at > self._distrusted_at:
            self._trust()
        for attempt_id, flags in driven.items():
            state = standing.get(attempt_id)
            if state is None or state == "called off":
                flags.lost, flags.cancelled = state is None, state is not None
                flags.abort.set()
        abandoned = [attempt_id for attempt_id in standing if attempt_id not in self._flags]
        await self._take_back_abandoned(abandoned)

    async def _take_back_abandoned(self, attempt_ids: Sequence[int]) -> None:
        """Attempts that are this worker's by the database, twice in a row, but that nothing here drives."""
        again = [attempt_id for attempt_id in attempt_ids if attempt_id in self._abandoned_before]
        self._abandoned_before = frozenset(attempt_ids)
        if again:
            log.warning("attempts_abandoned", attempts=again)
            await self._pulse.alone(
                partial(recovery.take_back, attempt_ids=again, settings=self._settings, now=self._services.clock())
            )

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop from another thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def ahead(settings: Settings) -> int:
    """Queries taken beyond what the engine takes at once, so that one is paid for and ready when a place is free."""
    return settings.bundle_size + settings.in_flight_max // 8


def _remember_llms(session: Session, llms: Sequence[Llm], now: datetime) -> None:
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    for llm in llms:
        seen = {**asdict(llm), "last_seen_at": now}
        del seen["name"]
        session.execute(
            dialect.insert(LlmRow)
            .values(name=llm.name, first_seen_at=now, **seen)
            .on_conflict_do_update(index_elements=[LlmRow.name], set_=seen)
        )


def _write_heartbeat(
    session: Session,
    worker_id: str,
    engine: str | None,
    presence: str | None,
    capacity: int,
    usage: dict[int, Usage],
    now: datetime,
) -> tuple[dict[int, str], str | None]:
    """Beat and report; returns how this worker's attempts stand (their state, or "called off"), and why it is
    quarantined, if it is."""
    worker = session.get(Worker, worker_id)
    if worker is None:
        worker = Worker(id=worker_id, engine=engine, started_at=now)
        session.add(worker)
    worker.capacity, worker.heartbeat_at, worker.presence = capacity, now, presence
    worker.stopped_at = None  # where it was taken for dead
    if usage:
        session.connection().execute(
            _REPORT,
            [
                {
                    "wave": wave_id,
                    "prompt": used.prompt,
                    "cached": used.cached,
                    "completion": used.completion,
                    "reasoning": used.reasoning,
                    "at": now,
                }
                for wave_id, used in usage.items()
            ],
        )
    rows = session.execute(
        select(Attempt.id, Batch.state)
        .join(QueryRow, QueryRow.id == Attempt.query_id)
        .join(Batch, Batch.id == QueryRow.batch_id)
        .where(Attempt.worker_id == worker_id, Attempt.state == AttemptState.RUNNING)
    )
    standing = {row.id: "running" if row.state == BatchState.IN_PROGRESS else "called off" for row in rows}
    return standing, worker.quarantined_because


def _say_goodbye(session: Session, worker_id: str, now: datetime) -> None:
    session.execute(update(Worker).where(Worker.id == worker_id).values(stopped_at=now, capacity=0))


_REPORT = (
    update(Wave)
    .where(Wave.id == bindparam("wave"), Wave.state == WaveState.HELD)
    .values(
        prompt_tokens=bindparam("prompt"),
        cached_tokens=bindparam("cached"),
        completion_tokens=bindparam("completion"),
        reasoning_tokens=bindparam("reasoning"),
        reported_at=bindparam("at"),
    )
)
