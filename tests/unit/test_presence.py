"""Who is dead is known from locks that the operating system releases, on SQLite without waiting for anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Attempt, QueryRow, Worker
from scheduler import recovery
from scheduler.daemon import leadership
from scheduler.presence import FILE, Watch, present, tidy
from scheduler.settings import Settings
from scheduler.settlement import claim
from scheduler.states import AttemptState, QueryState
from tests.factories import NOW, WORKER, add_batch, add_query, add_tenant, add_worker, fund, new_sessions

PRESENT = """
import sys, time
from scheduler.presence import present
held = present(sys.argv[1], "there", 5)
print(held.kind, flush=True)
time.sleep(600)
"""
LEADS = """
import sys, time
from scheduler.daemon import leadership
from scheduler.database import open_database
with leadership(open_database(sys.argv[1])) as leads:
    print(leads(), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'allotd.db'}"


@pytest.fixture
def sessions(url: str) -> Iterator[sessionmaker[Session]]:
    with new_sessions(url) as factory:
        yield factory


@contextmanager
def running(code: str, url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and the first line that it says."""
    with subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def dead(sessions: sessionmaker[Session], watch: Watch, now: datetime = NOW) -> list[str]:
    with sessions() as session:
        return watch.dead(session, now)


def test_a_killed_worker_is_dead_at_once_and_its_attempts_are_lost(url: str, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_worker(session, "there").presence = FILE
        attempt = fund(session, add_query(session, add_batch(session, add_tenant(session))), worker_id="there")
    watch = Watch()
    with running(PRESENT, url) as (process, said):
        assert said == FILE
        assert dead(sessions, watch) == []

        process.kill()
        process.wait()

        assert dead(sessions, watch) == ["there"]
    tidy(sessions.kw["bind"], ["there"])
    with sessions.begin() as session:
        recovery.bury(session, ["there"], NOW)
        assert recovery.lost_attempts(session, Settings(), NOW) == [attempt.attempt_id]
    assert dead(sessions, watch) == []


def test_a_worker_that_says_goodbye_or_holds_no_lock_is_not_missed(url: str, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_worker(session, "there").presence = FILE
        add_worker(session, "of an older version")
    present(url, "there", 5).leave()

    assert dead(sessions, Watch()) == []


def test_what_was_sent_to_a_dead_worker_is_sent_again(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_worker(session)
        waiting = fund(session, add_query(session, add_batch(session, add_tenant(session))))
        attempt = session.get_one(Attempt, waiting.attempt_id)
        attempt.state, attempt.worker_id, attempt.dispatched_at = AttemptState.DISPATCHED, None, NOW

    with sessions.begin() as session:
        recovery.bury(session, ["worker-1"], NOW)

    with sessions() as session:
        assert session.scalars(select(Attempt.dispatched_at)).one() is None
        assert session.scalars(select(Worker.capacity)).one() == 0


def test_a_worker_taken_for_dead_claims_nothing_until_it_has_been_heard(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_worker(session)
        attempt = fund(session, add_query(session, add_batch(session, add_tenant(session))))
        session.get_one(Attempt, attempt.attempt_id).state = AttemptState.DISPATCHED
        session.get_one(QueryRow, attempt.query_id).state = QueryState.PLANNED
        session.flush()
        recovery.bury(session, [WORKER], NOW)

        assert claim(session, [attempt.attempt_id], WORKER, NOW) == []

        session.get_one(Worker, WORKER, populate_existing=True).stopped_at = None
        session.flush()
        assert len(claim(session, [attempt.attempt_id], WORKER, NOW)) == 1


def test_silence_does_not_count_while_nobody_could_be_heard(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_worker(session, heartbeat_at=NOW - timedelta(hours=1))
        fund(session, add_query(session, add_batch(session, add_tenant(session))))

        assert len(recovery.lost_attempts(session, Settings(), NOW)) == 1
        assert recovery.lost_attempts(session, Settings(), NOW, is_patient=True) == []


def test_a_second_daemon_leads_on_sqlite_once_the_first_is_killed(url: str, sessions: sessionmaker[Session]) -> None:
    engine = sessions.kw["bind"]
    with running(LEADS, url) as (process, said):
        assert said == "True"
        with leadership(engine) as leads:
            assert not leads()

        process.kill()
        process.wait()

        with leadership(engine) as leads:
            assert leads()
