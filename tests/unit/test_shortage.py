"""Lines whose batch has money left, but held by others, wait in the queue and keep nobody from their turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch, QueryRow, Tenant
from scheduler.daemon import Daemon
from scheduler.dispatch import make_celery
from scheduler.settings import Settings
from scheduler.states import QueryState
from scheduler.wiring import Services
from tests.factories import NOW, add_batch, add_query, add_tenant, add_worker, new_sessions

LIMIT = 100_000
JUDGED: dict[str, Any] = {"verifier": "numeric", "reference": "21", "tokens_max": 64}


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as factory:
        yield factory


@pytest.fixture
def daemon(sessions: sessionmaker[Session]) -> Daemon:
    settings = Settings(explore_share=0.0, window_size=2)
    return Daemon(
        services=Services(settings=settings, sessions=sessions, clock=lambda: NOW), celery=make_celery("memory://")
    )


def lines(sessions: sessionmaker[Session], count: int, *, held: int, spent: int = 0) -> list[int]:
    """A batch under a limit of which so much is held and spent, and lines of it."""
    with sessions.begin() as session:
        if session.get(Tenant, "tenant_acme") is None:
            add_worker(session, capacity=64)
            add_tenant(session)
        batch = add_batch(session, session.get_one(Tenant, "tenant_acme"), limit_nanousd=LIMIT)
        batch.held_nanousd, batch.spent_nanousd = held, spent
        return [add_query(session, batch, **JUDGED).id for _ in range(count)]


def states(sessions: sessionmaker[Session], query_ids: list[int]) -> list[str]:
    with sessions() as session:
        return [session.get_one(QueryRow, query_id).state for query_id in query_ids]


def test_lines_whose_money_is_held_wait_and_others_of_the_tenant_have_their_turn(
    daemon: Daemon, sessions: sessionmaker[Session]
) -> None:
    waiting = lines(sessions, 3, held=LIMIT - 1)
    others = lines(sessions, 2, held=0)

    for _ in range(2):
        daemon.plan()

    assert states(sessions, waiting) == [QueryState.QUEUED] * 3
    assert states(sessions, others) == [QueryState.PLANNED] * 2
    with sessions.begin() as session:
        batch = session.get_one(Batch, session.get_one(QueryRow, waiting[0]).batch_id)
        batch.held_nanousd = 0
    for _ in range(2):
        daemon.plan()
    assert states(sessions, waiting) == [QueryState.PLANNED] * 3


def test_no_more_lines_are_planned_than_money_could_be_held_for(
    daemon: Daemon, sessions: sessionmaker[Session]
) -> None:
    some = lines(sessions, 2, held=LIMIT - 300)

    daemon.plan()
    daemon.plan()

    assert states(sessions, some) == [QueryState.PLANNED, QueryState.QUEUED]


def test_lines_that_all_of_their_batchs_money_could_not_pay_are_planned_to_end_at_once(
    daemon: Daemon, sessions: sessionmaker[Session]
) -> None:
    poor = lines(sessions, 2, held=1, spent=LIMIT - 2)

    daemon.plan()

    assert states(sessions, poor) == [QueryState.PLANNED] * 2
