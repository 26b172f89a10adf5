"""Two at once on PostgreSQL: one idempotency key makes one batch, and two daemons read each line once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch, QueryRow
from scheduler.files import store_upload
from scheduler.intake import advance_intake, create_batch
from scheduler.requests import ENDPOINT
from scheduler.settings import Settings
from scheduler.states import BatchState
from tests.factories import MODEL, NOW, add_tenant, new_sessions

AT_ONCE = 6
LINES = 500


@pytest.fixture
def sessions(new_database: Callable[[], str]) -> Iterator[sessionmaker[Session]]:
    with new_sessions(new_database()) as sessions:
        yield sessions


def upload(sessions: sessionmaker[Session]) -> tuple[str, str]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is 12 + 9? \u00e9 \0"}]}
    lines = [{"custom_id": f"q{i % 450}", "method": "POST", "url": ENDPOINT, "body": body} for i in range(LINES)]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    with sessions.begin() as session:
        tenant = add_tenant(session)
        file = store_upload(session, tenant.id, "a", "batch", [content], bytes_max=10**7, now=NOW)
        return tenant.id, file.id


def test_one_idempotency_key_sent_many_times_at_once_makes_one_batch(sessions: sessionmaker[Session]) -> None:
    tenant_id, file_id = upload(sessions)
    barrier = Barrier(AT_ONCE)

    def create(_number: int) -> str:
        with sessions.begin() as session:
            barrier.wait()
            batch = create_batch(
                session, tenant_id, input_file_id=file_id, endpoint=ENDPOINT, idempotency_key="k", now=NOW
            )
            return batch.id

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ids = set(pool.map(create, range(AT_ONCE)))

    with sessions() as session:
        assert ids == set(session.scalars(select(Batch.id)))
        assert len(ids) == 1


def test_two_daemons_that_read_the_same_file_take_each_line_once(sessions: sessionmaker[Session]) -> None:
    tenant_id, file_id = upload(sessions)
    with sessions.begin() as session:
        batch_id = create_batch(session, tenant_id, input_file_id=file_id, endpoint=ENDPOINT, now=NOW).id

    def read(_number: int) -> None:
        finished = False
        while not finished:
            with sessions.begin() as session:
                finished = advance_intake(session, batch_id, Settings(), NOW, lines=7)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, range(2)))

    with sessions() as session:
        rows = session.execute(select(QueryRow.line, QueryRow.custom_id).order_by(QueryRow.line)).all()
        assert session.get_one(Batch, batch_id).state == BatchState.IN_PROGRESS
        assert [row.line for row in rows] == list(range(1, LINES + 1))
        assert [row.custom_id for row in rows] == [f"q{i}" if i < 450 else None for i in range(LINES)]
