"""Steps that are committed together are done once each, and wait out whatever passes."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from models.tables import QueryRow, Wave
from scheduler import ledger
from scheduler.audit import discrepancies
from scheduler.database import reading
from scheduler.outages import in_words, is_passing
from scheduler.transactions import GroupCommit
from scheduler.types import Sample, Usage
from tests.factories import NOW, add_batch, add_query, add_tenant, fund, new_sessions


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    with new_sessions(f"sqlite:///{tmp_path}/allotd.db") as factory:
        yield factory


@pytest.fixture
def transact(sessions: sessionmaker[Session]) -> Iterator[GroupCommit]:
    made = GroupCommit(sessions, lambda: NOW)
    yield made
    made.close()


def funded(sessions: sessionmaker[Session]) -> ledger.Funded:
    with sessions.begin() as session:
        return fund(session, add_query(session, add_batch(session, add_tenant(session))))


def wave(of: ledger.Funded) -> ledger.WaveRequest:
    return ledger.WaveRequest(funded=of, samples=1, tokens_max=5000, tokens_floor=1, prompt_tokens=10)


def result(of: ledger.Funded, wave_id: int) -> ledger.Settlement:
    """A sample of 20 pages of text."""
    sample = Sample(text="word " * 16_000, tokens=4000)
    usage = Usage(prompt=10, completion=4000)
    return ledger.Settlement(funded=of, wave_id=wave_id, usage=usage, latency_s=1.0, samples=(sample,))


def engine_of(sessions: sessionmaker[Session]) -> Engine:
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    return engine


class Disk:
    """The pages that the database's file may have."""

    def __init__(self, engine: Engine) -> None:
        self.pages_max = 2**30
        event.listen(engine, "begin", lambda connection: self.limit(connection.connection.dbapi_connection))

    def limit(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA max_page_count={self.pages_max}")


def test_what_was_generated_is_written_when_a_full_disk_has_room_again(
    sessions: sessionmaker[Session], transact: GroupCommit
) -> None:
    disk = Disk(engine_of(sessions))
    attempt = funded(sessions)

    async def live() -> tuple[int, ...]:
        hold = await transact.together(ledger.reserve_all, wave(attempt), key=attempt.tenant_id)
        disk.pages_max = 1  # SQLite takes this for "not one page more than there are"
        writing = asyncio.create_task(
            transact.together(ledger.settle_all, result(attempt, hold.wave_id), key=attempt.tenant_id)
        )
        await asyncio.sleep(0.5)
        assert not writing.done()
        disk.pages_max = 2**30
        return await writing

    [sample_id] = asyncio.run(live())

    with reading(sessions) as session:
        assert [str(found) for found in discrepancies(session)] == []
        assert session.get_one(QueryRow, attempt.query_id).spent_nanousd == 10 + 2 * 4000
        assert sample_id


def test_a_full_disk_is_named_with_what_to_do(sessions: sessionmaker[Session]) -> None:
    attempt = funded(sessions)
    disk = Disk(engine_of(sessions))
    disk.pages_max = 1

    with pytest.raises(OperationalError) as caught, sessions.begin() as session:
        session.execute(text("UPDATE queries SET body_json = :long"), {"long": "x" * 100_000})

    assert is_passing(caught.value)
    assert in_words(caught.value) == "The disk of the database is full; make room, and work goes on by itself."
    with reading(sessions) as session:
        assert session.get_one(QueryRow, attempt.query_id).body_json != "x" * 100_000


def test_a_worker_that_is_to_stop_does_not_wait_for_a_full_disk_for_ever(
    sessions: sessionmaker[Session], transact: GroupCommit
) -> None:
    attempt = funded(sessions)
    disk = Disk(engine_of(sessions))

    async def live() -> None:
        hold = await transact.together(ledger.reserve_all, wave(attempt), key=attempt.tenant_id)
        disk.pages_max = 1
        transact.give_up_after(0.3)
        await transact.together(ledger.settle_all, result(attempt, hold.wave_id), key=attempt.tenant_id)

    with pytest.raises(OperationalError, match="full"):
        asyncio.run(live())
    disk.pages_max = 2**30


def test_a_step_that_is_wrong_fails_alone_and_at_once(sessions: sessionmaker[Session], transact: GroupCommit) -> None:
    attempt = funded(sessions)

    async def live() -> list[object]:
        def wrong(session: Session) -> None:
            session.execute(text("SELECT * FROM nothing"))

        reserve = transact.together(ledger.reserve_all, wave(attempt), key="")
        return list(await asyncio.gather(reserve, transact.alone(wrong), return_exceptions=True))

    hold, error = asyncio.run(live())

    assert isinstance(hold, ledger.Reservation)
    assert isinstance(error, OperationalError)
    assert not is_passing(error)
    with reading(sessions) as session:
        assert session.scalars(select(Wave.id)).all() == [hold.wave_id]


def test_a_writer_waits_its_turn_behind_another(sessions: sessionmaker[Session], transact: GroupCommit) -> None:
    attempt = funded(sessions)
    holding, over = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with sessions.begin() as session:
            session.execute(text("UPDATE tenants SET name = name"))
            holding.set()
            over.wait(5)

    other = threading.Thread(target=hold_the_lock)
    other.start()
    holding.wait(5)
    threading.Timer(0.3, over.set).start()
    began = time.monotonic()

    hold = asyncio.run(transact.together(ledger.reserve_all, wave(attempt), key=""))

    other.join()
    assert hold.wave_id
    assert time.monotonic() - began >= 0.2


def test_a_reading_session_cannot_write(sessions: sessionmaker[Session]) -> None:
    attempt = funded(sessions)

    with pytest.raises(OperationalError, match="readonly"), reading(sessions) as session:
        session.execute(text("UPDATE queries SET line = 1"))

    with sessions.begin() as session:  # and the same connection writes again
        session.execute(text("UPDATE queries SET line = 7"))
    with reading(sessions) as session:
        assert session.get_one(QueryRow, attempt.query_id).line == 7
