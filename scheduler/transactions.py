"""Many small database steps from one event loop, committed together: one disk flush for a whole group.

A step that was asked for is done, and done once: it is tried again for as long as the database is away, full or busy
(what was generated must be written down), and after a commit whose acknowledgement was lost the database is asked
whether it was made before anything is done twice.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from scheduler.errors import SchedulerError
from scheduler.outages import in_words, is_passing, receipt, was_committed

T = TypeVar("T")

GROUP_MAX = 64
"""Steps per commit; beyond this the flush is no longer what a step costs."""

RETRY_MAX_S = 2.0
"""The longest wait between two tries while the database is away."""

SAY_EVERY_S = 10.0
"""How often an outage that lasts is logged."""

CLOSE_FOR_S = 10.0
"""How long a process that is to stop still waits for a database that is away."""

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
    the group is run again, until it works or `give_up_after` has passed; steps must therefore touch nothing but their
    session.
    """

    def __init__(self, sessions: sessionmaker[Session], clock: Callable[[], datetime], name: str = "money") -> None:
        self._sessions = sessions
        self._clock = clock
        self._waiting: SimpleQueue[_Step | None] = SimpleQueue()
        self._gives_up_at = float("inf")
        self._said_at = float("-inf")
        self._thread = threading.Thread(target=self._serve, name=f"group-commit-{name}", daemon=True)
        self._thread.start()

    async def alone(self, step: Callable[[Session], T], *, key: str = "") -> T:
        """Run one step; returns after its commit. Raises what it raised, or DBAPIError once it has given up."""
        result: T = await self._enqueue(_run_each, step, key)
        return result

    async def together(self, many: Many[I, T], item: I, *, key: str) -> T:
        """Have an item handled; returns after the commit. Raises the item's error, or DBAPIError."""
        result: T = await self._enqueue(many, item, key)
        return result

    def give_up_after(self, seconds: float) -> None:
        """Wait no longer than this, from now on, for a database that is away: the process is to stop."""
        self._gives_up_at = min(self._gives_up_at, time.monotonic() + seconds)

    def close(self) -> None:
        """Finish what is waiting and end the thread."""
        self.give_up_after(CLOSE_FOR_S)
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
            for attempt in self._retrying():
                with attempt:
                    self._run(kinds)
        except Exception as error:
            if isinstance(error, DBAPIError):
                log.error("transaction_failed", steps=len(group), message=in_words(error))
            else:
                log.exception("transaction_failed", steps=len(group))
            for step in group:
                step.result = error
        for step in group:
            step.resolve()

    def _run(self, kinds: Sequence[_Step]) -> None:
        """Handle everything in one transaction; where something fails, in another that sets savepoints around it."""
        try:
            self._once(kinds, self._handle_unguarded)
        except Exception as error:
            if is_passing(error):
                raise
            self._once(kinds, self._handle)

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=0.02, max=RETRY_MAX_S),
            stop=lambda _: time.monotonic() >= self._gives_up_at,
            before_sleep=self._say,
            reraise=True,
        )

    def _once(self, kinds: Sequence[_Step], handle: Callable[[Session, Sequence[_Step]], None]) -> None:
        """Handle every step in one transaction. What they returned stands if it was committed, heard of or not."""
        with self._sessions() as session:
            for _, steps in groupby(kinds, key=_kind):
                handle(session, list(steps))
            xid = receipt(session)
            try:
                session.commit()
            except DBAPIError as error:
                if xid is None or not self._was_committed(session, xid):
                    raise
                log.warning("commit_confirmed", message=in_words(error))

    def _was_committed(self, session: Session, xid: int) -> bool:
        engine = session.get_bind()
        assert isinstance(engine, Engine)
        for attempt in self._retrying():
            with attempt:
                committed = was_committed(engine, xid)
        return committed

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None and state.attempt_number > 1 and time.monotonic() - self._said_at >= SAY_EVERY_S:
            self._said_at = time.monotonic()
            log.warning("database_unavailable", message=in_words(error))

    def _handle_unguarded(self, session: Session, steps: Sequence[_Step]) -> None:
        results = steps[0].many(session, [step.item for step in steps], self._clock())
        for step, result in zip(steps, results, strict=True):
            step.result = result

    def _handle(self, session: Session, steps: Sequence[_Step]) -> None:
        """Handle steps of one kind together, or, where that fails, one by one."""
        try:
            with session.begin_nested():
                self._handle_unguarded(session, steps)
        except Exception as error:
            if is_passing(error):
                raise
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
