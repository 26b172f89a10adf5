"""Many small database steps from one event loop, committed together: one disk flush for a whole group."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from scheduler.errors import SchedulerError

T = TypeVar("T")

GROUP_MAX = 64
"""Steps per commit; beyond this the flush is no longer what a step costs."""

RETRY_FOR_S = 60.0
"""How long a step is tried again while the database is away or another writer has the lock."""

log = structlog.get_logger()


I = TypeVar("I")  # noqa: E741 (an item)

Many = Callable[[Session, Sequence[I], datetime], "Sequence[T | SchedulerError]"]
"""Handles items together: one result, or the error that the item alone would have raised, per item in order."""


class Transact(Protocol):
    """Runs steps in transactions, and returns what they returned once that is committed."""

    async def alone(self, step: Callable[[Session], T], *, key: str = "") -> T:
        """Run one step. Raises what it raises."""
        ...

    async def together(self, many: Many[I, T], item: I, *, key: str) -> T:
        """Have an item handled, together with whatever else of the same key waits for the same handler."""
        ...


@dataclass(slots=True)
class _Step:
    key: str
    many: Many[Any, Any]
    item: Any
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None

    def resolve(self) -> None:
        self.loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if self.future.done():  # whoever asked has gone
            return
        if isinstance(self.result, Exception):
            self.future.set_exception(self.result)
        else:
            self.future.set_result(self.result)


class GroupCommit:
    """A thread that takes waiting steps, hands those that belong together to one handler, and commits them at once.

    When a handler raises, the group is run again with a savepoint around each handler call: what that one does is then
    undone alone, and its items are handled one by one. A savepoint is two round trips, so none is set before. Keys are
    taken in order, so that two processes that lock the same tenants do so in the same order. Where the database fails,
    the group is run again; steps must therefore touch nothing but their session.
    """

    def __init__(self, sessions: sessionmaker[Session], clock: Callable[[], datetime], name: str = "money") -> None:
        self._sessions = sessions
        self._clock = clock
        self._waiting: SimpleQueue[_Step | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"group-commit-{name}", daemon=True)
        self._thread.start()

    async def alone(self, step: Callable[[Session], T], *, key: str = "") -> T:
        """Run one step; returns after its commit. Raises what it raised, or DBAPIError when retries run out."""
        result: T = await self._enqueue(_run_each, step, key)
        return result

    async def together(self, many: Many[I, T], item: I, *, key: str) -> T:
        """Have an item handled; returns after the commit. Raises the item's error, or DBAPIError."""
        result: T = await self._enqueue(many, item, key)
        return result

    def close(self) -> None:
        """Finish what is waiting and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    async def _enqueue(self, many: Many[Any, Any], item: Any, key: str) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.put(_Step(key=key, many=many, item=item, future=future, loop=loop))
        return await future

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            group, last = [first], False
            try:
                while len(group) < GROUP_MAX:
                    step = self._waiting.get_nowait()
                    if step is None:
                        last = True
                        break
                    group.append(step)
            except Empty:
                pass
            self._commit(group)
            if last:
                return

    def _commit(self, group: Sequence[_Step]) -> None:
        kinds = sorted(group, key=_kind)  # stable: within a kind, first come, first served
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(DBAPIError),
                wait=wait_random_exponential(multiplier=0.02, max=2.0),
                stop=stop_after_delay(RETRY_FOR_S),
                reraise=True,
            ):
                with attempt:
                    self._run(kinds)
        except Exception as error:
            log.exception("transaction_failed", steps=len(group))
            for step in group:
                step.result = error
        for step in group:
            step.resolve()

    def _run(self, kinds: Sequence[_Step]) -> None:
        """Handle everything in one transaction; where something fails, in another that sets savepoints around it."""
        try:
            with self._sessions.begin() as session:
                for _, steps in groupby(kinds, key=_kind):
                    self._handle_unguarded(session, list(steps))
        except DBAPIError:
            raise
        except Exception:
            with self._sessions.begin() as session:
                for _, steps in groupby(kinds, key=_kind):
                    self._handle(session, list(steps))

    def _handle_unguarded(self, session: Session, steps: Sequence[_Step]) -> None:
        results = steps[0].many(session, [step.item for step in steps], self._clock())
        for step, result in zip(steps, results, strict=True):
            step.result = result

    def _handle(self, session: Session, steps: Sequence[_Step]) -> None:
        """Handle steps of one kind together, or, where that fails, one by one."""
        try:
            with session.begin_nested():
                self._handle_unguarded(session, steps)
        except DBAPIError:
            raise
        except Exception as error:
            if len(steps) == 1:
                steps[0].result = error
                return
            for step in steps:
                self._handle(session, [step])


def _kind(step: _Step) -> tuple[str, int]:
    return step.key, id(step.many)


def _run_each(session: Session, steps: Sequence[Callable[[Session], T]], _now: datetime) -> list[T | SchedulerError]:
    """Steps that have nothing in common, each undone alone."""
    results: list[T | SchedulerError] = []
    for step in steps:
        try:
            with session.begin_nested():
                results.append(step(session))
        except SchedulerError as error:
            results.append(error)
    return results
