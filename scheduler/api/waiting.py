"""How many clients wait for their answers with one question to the database: which of these queries have ended?

A client will not wait for a cap to turn, so a query that is parked for lack of money is ended here, with the best of
what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

import structlog
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from models.tables import QueryRow
from scheduler.cancellation import stop_parked
from scheduler.database import reading
from scheduler.states import QUERY_FINAL, QueryState
from scheduler.wiring import Services

POLL_S = 0.05
"""How often the database is asked while anybody waits; a fraction of what the fastest answer takes."""
ASKED_AT_ONCE = 500

log = structlog.get_logger()


class Endings:
    """Tells whoever waits for a query that it has ended. One task asks for all of them, and only while some wait."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def wait(self, query_id: int) -> None:
        """Return when the query has ended."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[query_id] = ended
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            await ended
        finally:
            self._waiting.pop(query_id, None)

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        while self._waiting:
            await asyncio.sleep(POLL_S)
            try:
                ended = await run_in_threadpool(self._ended, list(self._waiting))
            except SQLAlchemyError as error:  # the database may come back before the clients lose patience
                log.warning("endings_not_read", error=str(error))
                await asyncio.sleep(1)
                continue
            for query_id in ended:
                future = self._waiting.get(query_id)
                if future is not None and not future.done():
                    future.set_result(None)
            await asyncio.sleep(0)

    def _ended(self, query_ids: Sequence[int]) -> list[int]:
        stopped = (*sorted(QUERY_FINAL), QueryState.PARKED)
        found: list[tuple[int, str]] = []
        rest = iter(query_ids)
        with reading(self._services.sessions) as session:
            while some := list(islice(rest, ASKED_AT_ONCE)):
                statement = select(QueryRow.id, QueryRow.state).where(
                    QueryRow.id.in_(some), QueryRow.state.in_(stopped)
                )
                found += session.execute(statement)
        return [query_id for query_id, state in found if state != QueryState.PARKED or self._stop(query_id)]

    def _stop(self, query_id: int) -> bool:
        with self._services.sessions.begin() as session:
            return stop_parked(session, query_id, self._services.clock())
