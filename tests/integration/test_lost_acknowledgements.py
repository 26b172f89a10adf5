"""The connection dies at COMMIT on real PostgreSQL: what was committed is not done again, what was not is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Entry, QueryRow, SampleRow, Wave
from scheduler import ledger
from scheduler.audit import discrepancies
from scheduler.transactions import GroupCommit
from scheduler.types import Sample, Usage
from tests.factories import NOW, add_batch, add_cap, add_query, add_tenant, fund, new_sessions

CALLS = 3


@pytest.fixture
def sessions(new_database: Callable[[], str]) -> Iterator[sessionmaker[Session]]:
    with new_sessions(new_database()) as factory:
        yield factory


class Cut:
    """Breaks connections at COMMIT: just before the server hears of it, or just before we hear from the server."""

    def __init__(self, engine: Engine, *, is_heard: bool) -> None:
        self.left = 0
        self._engine = engine
        self._is_heard = is_heard
        event.listen(engine, "commit", self._cut)

    def _cut(self, connection: Connection) -> None:
        if not self.left or not connection.scalar(text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")):
            return
        self.left -= 1
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
        if self._is_heard:
            connection.exec_driver_sql("COMMIT")
        with self._engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})


@pytest.mark.parametrize("is_heard", [True, False])
def test_money_is_held_and_spent_once_where_the_connection_dies_at_commit(
    sessions: sessionmaker[Session], *, is_heard: bool
) -> None:
    with sessions.begin() as session:
        tenant = add_tenant(session)
        cap = add_cap(session, tenant, 10**9)
        attempt = fund(session, add_query(session, add_batch(session, tenant)))
    engine = sessions.kw["bind"]
    cut = Cut(engine, is_heard=is_heard)
    transact = GroupCommit(sessions, lambda: NOW)

    async def live() -> tuple[ledger.Reservation, tuple[int, ...]]:
        cut.left = CALLS
        request = ledger.WaveRequest(funded=attempt, samples=1, tokens_max=50, tokens_floor=1, prompt_tokens=10)
        hold = await transact.together(ledger.reserve_all, request, key=attempt.tenant_id)
        cut.left = CALLS
        settlement = ledger.Settlement(
            funded=attempt,
            wave_id=hold.wave_id,
            usage=Usage(prompt=10, completion=20),
            latency_s=1.0,
            samples=(Sample(text="21", tokens=20),),
        )
        return hold, await transact.together(ledger.settle_all, settlement, key=attempt.tenant_id)

    hold, sample_ids = asyncio.run(live())
    transact.close()

    with sessions() as session:
        assert session.scalars(select(Wave.id)).all() == [hold.wave_id]
        assert tuple(session.scalars(select(SampleRow.id))) == sample_ids
        assert session.scalar(select(func.count()).where(Entry.kind == "reserve")) == 1
        assert session.get_one(QueryRow, attempt.query_id).spent_nanousd == 10 + 2 * 20
        assert ledger.left_under(session, cap, "UTC", NOW) == 10**9 - 50
        assert [str(found) for found in discrepancies(session)] == []
    assert cut.left == (CALLS - 1 if is_heard else 0)
