"""A worker whose engine breaks its limits takes nothing more, gives back what it has, and stops as others do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Alert, Attempt, QueryRow, SampleRow, Wave, Worker
from scheduler import engines, planning
from scheduler.audit import discrepancies
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.drafts import draft_plans
from scheduler.prediction import FixedPriors
from scheduler.processes import wait_until
from scheduler.settings import Settings
from scheduler.states import AttemptState, QueryState, WaveState
from scheduler.types import AlertKind
from scheduler.wiring import utc_now
from tests.factories import add_batch, add_query, add_tenant, add_worker, new_sessions
from workers.runtime import Runtime

SOON_S = 20.0
QUERIES = 3


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'allotd.db'}"


@pytest.fixture
def sessions(url: str) -> Iterator[sessionmaker[Session]]:
    with new_sessions(url) as factory:
        yield factory


@pytest.fixture
def attempts(sessions: sessionmaker[Session]) -> list[int]:
    """Funded attempts at queries that want several samples."""
    with sessions.begin() as session:
        add_worker(session, heartbeat_at=utc_now())
        batch = add_batch(session, add_tenant(session))
        rows = [add_query(session, batch, verifier="numeric", samples_max=8) for _ in range(QUERIES)]
        return planned(session, rows)


@pytest.fixture
def liar(url: str, sessions: sessionmaker[Session]) -> Iterator[Runtime]:
    """A worker whose engine reports more than it was allowed to make, each time."""
    yield from running(url, overrun_rate=1.0)


def running(url: str, **engine: float) -> Iterator[Runtime]:
    settings = Settings(
        database_url=url, engine="fake", fake_engine=json.dumps(engine), in_flight_max=4, bundle_size=4, heartbeat_s=0.2
    )
    runtime = Runtime(settings)
    runtime.start()
    runtime.ready()
    try:
        yield runtime
    finally:
        runtime.stop()


def planned(session: Session, rows: list[QueryRow]) -> list[int]:
    drafts = draft_plans(session, rows, FixedPriors(), Settings(), utc_now())
    return planning.fund_window(session, drafts, utc_now())


def quarantined(sessions: sessionmaker[Session], worker_id: str) -> str | None:
    with sessions() as session:
        return session.scalar(select(Worker.quarantined_because).where(Worker.id == worker_id))


def none_running(sessions: sessionmaker[Session]) -> bool:
    with sessions() as session:
        running = select(func.count()).where(Attempt.state == AttemptState.RUNNING)
        return session.scalar(running) == 0 and session.scalar(select(func.count()).where(Wave.state == "held")) == 0


def test_what_an_engine_made_beyond_its_limit_is_booked_and_its_worker_quarantined(
    sessions: sessionmaker[Session], attempts: list[int], liar: Runtime
) -> None:
    liar.admit(attempts)

    assert wait_until(lambda: quarantined(sessions, liar.worker_id) is not None, SOON_S)
    assert wait_until(lambda: none_running(sessions), SOON_S)
    with sessions() as session:
        [alert] = session.scalars(select(Alert)).all()
        assert (alert.kind, alert.subject) == (AlertKind.ENGINE_QUARANTINED, liar.worker_id)
        over = session.scalars(select(Wave).where(Wave.cost_nanousd > Wave.held_nanousd)).all()
        assert over
        assert all(wave.state == WaveState.SETTLED for wave in over)
        assert list(discrepancies(session)) == []


def test_its_queries_go_back_with_their_samples(
    sessions: sessionmaker[Session], attempts: list[int], liar: Runtime
) -> None:
    liar.admit(attempts)

    assert wait_until(lambda: quarantined(sessions, liar.worker_id) is not None, SOON_S)
    assert wait_until(lambda: none_running(sessions), SOON_S)
    with sessions() as session:
        states = set(session.scalars(select(QueryRow.state)))
        assert states <= {QueryState.QUEUED, QueryState.ANSWERED}
        assert session.scalar(select(func.count()).select_from(SampleRow))


@pytest.fixture
def honest(url: str, sessions: sessionmaker[Session]) -> Iterator[Runtime]:
    """A worker whose engine does as it is told."""
    yield from running(url)


def test_a_quarantined_worker_claims_nothing_until_it_is_released(
    sessions: sessionmaker[Session], attempts: list[int], honest: Runtime
) -> None:
    assert wait_until(lambda: is_known(sessions, honest.worker_id), SOON_S)
    with sessions.begin() as session:
        distrust = engines.Distrust(worker_id=honest.worker_id, because="Its answers are nonsense.")
        engines.quarantine_all(session, [distrust], utc_now())
    assert wait_until(lambda: not honest.is_trusted, SOON_S)

    admitting = threading.Thread(target=honest.admit, args=(attempts,))
    admitting.start()
    admitting.join(timeout=0.5)
    with sessions() as session:
        claimed = session.scalar(select(func.count()).where(Attempt.state != AttemptState.DISPATCHED))
    with sessions.begin() as session:
        engines.release(session, honest.worker_id, utc_now(), lease_s=15.0)
    admitting.join(timeout=SOON_S)

    assert claimed == 0
    assert wait_until(lambda: all_answered(sessions), SOON_S)


def test_a_quarantined_worker_that_is_asked_to_stop_lets_go_of_its_messages(
    sessions: sessionmaker[Session], attempts: list[int], honest: Runtime
) -> None:
    assert wait_until(lambda: is_known(sessions, honest.worker_id), SOON_S)
    with sessions.begin() as session:
        distrust = engines.Distrust(worker_id=honest.worker_id, because="Its answers are nonsense.")
        engines.quarantine_all(session, [distrust], utc_now())
    assert wait_until(lambda: not honest.is_trusted, SOON_S)
    admitting = threading.Thread(target=honest.admit, args=(attempts,))
    admitting.start()

    honest.drain()

    admitting.join(timeout=SOON_S)
    assert not admitting.is_alive()
    with sessions() as session:
        assert set(session.scalars(select(Attempt.state))) == {AttemptState.DISPATCHED}


def test_a_quarantined_worker_is_no_capacity(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_worker(session, "w-1", heartbeat_at=utc_now())
        add_query(session, add_batch(session, add_tenant(session)))
        engines.quarantine_all(session, [engines.Distrust(worker_id="w-1", because="It lied.")], utc_now())

    with sessions() as session:
        rows = planning.choose_window(session, DeficitRoundRobin(), Settings(), utc_now())

    assert list(rows) == []


def is_known(sessions: sessionmaker[Session], worker_id: str) -> bool:
    with sessions() as session:
        return session.get(Worker, worker_id) is not None


def all_answered(sessions: sessionmaker[Session]) -> bool:
    with sessions() as session:
        return set(session.scalars(select(QueryRow.state))) == {QueryState.ANSWERED}
