"""Many processes on one tenant's money, on real PostgreSQL: not a nano-dollar too much, and no refusal too many."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Attempt, Batch, CapPeriod, QueryRow, SampleRow, Tenant, Wave
from scheduler import cancellation, ledger, recovery, settlement
from scheduler.audit import discrepancies
from scheduler.caps import set_cap
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.core.periods import Period
from scheduler.database import open_database, reading
from scheduler.database import sessions as sessions_of
from scheduler.drafts import draft_plans
from scheduler.errors import Cancelled, CapReached, LeaseLost, SchedulerError
from scheduler.planning import choose_window, fund_window
from scheduler.prediction import FixedPriors
from scheduler.settings import Settings
from scheduler.states import AttemptState, BatchState, QueryState, WaveState
from scheduler.types import Sample, Usage
from tests.factories import NOW, WORKER, add_batch, add_cap, add_query, add_tenant, add_worker, fund, new_sessions

PROCESSES = 4
RESERVERS = 64
FIT = 37
"""Of 64 waves, so many have room under the cap."""
WAVE_NANOUSD = 10 + 2 * 50
SAMPLE = Sample(text="21", tokens=20)
USAGE = Usage(prompt=10, completion=20)

_barrier: Barrier | None = None


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that can begin at the same moment."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn, initializer=_share, initargs=(barrier,)) as made:
        yield made


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def sessions(url: str) -> Iterator[sessionmaker[Session]]:
    with new_sessions(url) as factory:
        yield factory


def _share(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 (a barrier reaches a pool's processes by inheritance only)
    _barrier = barrier


def at_once(pool: ProcessPoolExecutor, *jobs: Callable[[sessionmaker[Session]], Any], url: str) -> list[Any]:
    """Run one job per process, all from the same moment on; results or errors in order."""
    assert len(jobs) == PROCESSES
    return list(pool.map(partial(_run, url), jobs))


def _run(url: str, job: Callable[[sessionmaker[Session]], Any]) -> Any:
    engine = open_database(url)
    try:
        factory = sessions_of(engine)
        with factory() as session:
            session.scalar(select(1))
        assert _barrier is not None
        _barrier.wait(60)
        return job(factory)
    finally:
        engine.dispose()


def asked(funded: ledger.Funded) -> ledger.WaveRequest:
    """A wave that shrinks to nothing smaller."""
    return ledger.WaveRequest(funded=funded, samples=1, tokens_max=50, tokens_floor=50, prompt_tokens=10)


def reserve_each(attempts: Sequence[ledger.Funded], sessions: sessionmaker[Session]) -> list[str]:
    """Reserve a wave for each in a transaction of its own; what came of it."""
    return [reserve(sessions, funded) for funded in attempts]


def reserve(sessions: sessionmaker[Session], funded: ledger.Funded) -> str:
    try:
        with sessions.begin() as session:
            ledger.reserve(session, asked(funded), NOW)
    except SchedulerError as refused:
        return type(refused).__name__
    return "held"


def settle(wave_id: int, funded: ledger.Funded, sessions: sessionmaker[Session]) -> str:
    done = ledger.Settlement(funded=funded, wave_id=wave_id, usage=USAGE, latency_s=1.0, samples=(SAMPLE,))
    try:
        with sessions.begin() as session:
            ledger.settle(session, done, NOW)
    except LeaseLost:
        return "LeaseLost"
    return "settled"


def attempts_of(sessions: sessionmaker[Session], count: int, *, cap_nanousd: int | None = None) -> list[ledger.Funded]:
    """Running attempts of one tenant that has never spent anything."""
    with sessions.begin() as session:
        tenant = add_tenant(session)
        if cap_nanousd is not None:
            add_cap(session, tenant, cap_nanousd, period="day")
        batch = add_batch(session, tenant)
        return [fund(session, add_query(session, batch)) for _ in range(count)]


def assert_books_balance(session: Session) -> None:
    assert [str(found) for found in discrepancies(session)] == []


def test_of_64_reservers_exactly_as_many_as_fit_hold_money_from_a_tenants_first_request_on(
    pool: ProcessPoolExecutor, url: str, sessions: sessionmaker[Session]
) -> None:
    """No overspend (BerriAI/litellm#34732, #40095, PR#41218), and no phantom block (PR#38647)."""
    attempts = attempts_of(sessions, RESERVERS, cap_nanousd=FIT * WAVE_NANOUSD + WAVE_NANOUSD - 1)
    shares = [attempts[number::PROCESSES] for number in range(PROCESSES)]

    results = at_once(pool, *(partial(reserve_each, share) for share in shares), url=url)

    with reading(sessions) as session:
        outcomes = [outcome for share in results for outcome in share]
        assert outcomes.count("held") == FIT
        assert outcomes.count(CapReached.__name__) == RESERVERS - FIT
        assert session.scalars(select(CapPeriod.held_nanousd)).all() == [FIT * WAVE_NANOUSD]
        assert_books_balance(session)


def take_back(attempt_id: int, sessions: sessionmaker[Session]) -> str:
    with sessions.begin() as session:
        return f"took {recovery.take_back(session, [attempt_id], Settings(), NOW)}"


def cancel(batch_id: str, sessions: sessionmaker[Session]) -> str:
    with sessions.begin() as session:
        cancellation.cancel_batch(session, None, batch_id, NOW)
    with sessions.begin() as session:
        cancellation.cancel_waiting(session, batch_id, NOW)
    return "cancelled"


@pytest.mark.parametrize("again", range(3))
def test_a_wave_that_is_settled_twice_and_taken_back_while_its_batch_is_cancelled_is_paid_once(
    pool: ProcessPoolExecutor, url: str, sessions: sessionmaker[Session], again: int
) -> None:
    [funded] = attempts_of(sessions, 1, cap_nanousd=10**6)
    with sessions.begin() as session:
        wave_id = ledger.reserve(session, asked(funded), NOW).wave_id

    settled, other, taken, _ = at_once(
        pool,
        partial(settle, wave_id, funded),
        partial(settle, wave_id, funded),
        partial(take_back, funded.attempt_id),
        partial(cancel, funded.batch_id),
        url=url,
    )

    with reading(sessions) as session:
        assert taken == "took 1"
        paid = [settled, other].count("settled")
        assert paid <= 1
        assert session.scalars(select(Tenant.spent_nanousd)).one() == paid * (10 + 2 * 20)
        assert session.scalars(select(Tenant.held_nanousd)).one() == 0
        assert session.scalar(select(func.count()).select_from(SampleRow)) == paid
        assert reserve(sessions, funded) in {Cancelled.__name__, LeaseLost.__name__}
        assert_books_balance(session)


def plan_and_fund(sessions: sessionmaker[Session]) -> int:
    """What a daemon does in a tick that plans."""
    with reading(sessions) as session:
        rows = choose_window(session, DeficitRoundRobin(), Settings(), NOW)
        drafts = draft_plans(session, rows, FixedPriors(), Settings(), NOW)
    with sessions.begin() as session:
        return len(fund_window(session, drafts, NOW))


def test_daemons_that_plan_the_same_window_fund_each_query_once(
    pool: ProcessPoolExecutor, url: str, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        add_worker(session, capacity=100)
        batch = add_batch(session, add_tenant(session))
        for _ in range(50):
            add_query(session, batch)

    funded = at_once(pool, *[plan_and_fund] * PROCESSES, url=url)

    with reading(sessions) as session:
        assert sum(funded) == 50
        assert session.scalar(select(func.count()).select_from(Attempt)) == 50
        assert set(session.scalars(select(QueryRow.attempts))) == {1}


def claim(attempt_ids: Sequence[int], worker_id: str, sessions: sessionmaker[Session]) -> list[int]:
    with sessions.begin() as session:
        return [work.funded.attempt_id for work in settlement.claim(session, attempt_ids, worker_id, NOW)]


def test_a_message_delivered_to_several_workers_is_worked_on_once(
    pool: ProcessPoolExecutor, url: str, sessions: sessionmaker[Session]
) -> None:
    """celery#5935: a redelivered message must not be a second execution, which is a second payment."""
    attempts = attempts_of(sessions, 16)
    ids = [funded.attempt_id for funded in attempts]
    with sessions.begin() as session:
        for attempt in session.scalars(select(Attempt)):
            attempt.state, attempt.worker_id = AttemptState.DISPATCHED, None
        for query in session.scalars(select(QueryRow)):
            query.state = QueryState.PLANNED

    claims = at_once(pool, *(partial(claim, ids, f"worker-{number}") for number in range(PROCESSES)), url=url)

    assert sorted(attempt_id for claimed in claims for attempt_id in claimed) == ids
    assert claim(ids, WORKER, sessions) == []


def park(funded: ledger.Funded, sessions: sessionmaker[Session]) -> str:
    """Ask for a wave, and park where it does not fit, as a worker does."""
    try:
        with sessions.begin() as session:
            ledger.reserve(session, asked(funded), NOW)
    except CapReached as refused:
        with sessions.begin() as session:
            settlement.end_all(session, [settlement.parked(funded, refused)], NOW)
        return "parked"
    return "held"


def raise_cap(tenant_id: str, limit_nanousd: int, sessions: sessionmaker[Session]) -> str:
    with sessions.begin() as session:
        tenant = session.get_one(Tenant, tenant_id)
        set_cap(session, tenant, limit_nanousd=limit_nanousd, period=Period.DAY, now=NOW)
    return "raised"


def resume(sessions: sessionmaker[Session]) -> int:
    with sessions.begin() as session:
        return recovery.resume_parked(session, NOW, limit=10)


def test_a_query_that_parks_while_its_cap_is_raised_is_resumed_and_not_forgotten(
    pool: ProcessPoolExecutor, url: str, sessions: sessionmaker[Session]
) -> None:
    [first, second] = attempts_of(sessions, 2, cap_nanousd=WAVE_NANOUSD - 1)

    outcomes = at_once(
        pool,
        partial(park, first),
        partial(raise_cap, first.tenant_id, 10 * WAVE_NANOUSD),
        partial(park, second),
        resume,
        url=url,
    )

    parked = [outcomes[0], outcomes[2]].count("parked")
    assert outcomes[3] + resume(sessions) == parked
    with reading(sessions) as session:
        queued = select(func.count()).where(QueryRow.state == QueryState.QUEUED)
        assert session.scalar(queued) == parked
        held = select(func.count()).where(Wave.state == WaveState.HELD)
        assert session.scalar(held) == 2 - parked
        assert session.scalars(select(Batch.state)).one() == BatchState.IN_PROGRESS
        assert_books_balance(session)
