"""Fairness as tenants meet it: windows planned from the database, one after the other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import Table, insert, update
from sqlalchemy.orm import Session

from models.tables import Batch, QueryRow
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.finalization import finalize, output_chunks
from scheduler.planning import choose_window
from scheduler.recovery import expire_batches
from scheduler.settings import Settings
from scheduler.states import BatchState, QueryState
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, add_worker, new_sessions

SETTINGS = Settings(window_size=64)


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        add_worker(session, capacity=1000)
        yield session


def fill(session: Session, batch: Batch, lines: int, *, tokens_max: int = 100, priority: int = 0) -> None:
    """Queue many lines at once."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "What is 12 + 9?"}]})
    row: dict[str, Any] = {
        "batch_id": batch.id,
        "tenant_id": batch.tenant_id,
        "state": QueryState.QUEUED,
        "model": MODEL,
    }
    row |= {"body_json": body, "tokens_max": tokens_max, "samples_max": 2, "priority": priority, "created_at": NOW}
    # Past the ORM, which takes ten seconds for fifty thousand.
    session.connection().execute(
        insert(cast("Table", QueryRow.__table__)), [row | {"line": i, "custom_id": f"{i}"} for i in range(lines)]
    )


def served(session: Session, rotation: DeficitRoundRobin) -> list[QueryRow]:
    """The next window, answered at once."""
    rows = list(choose_window(session, rotation, SETTINGS, NOW))
    session.execute(update(QueryRow).where(QueryRow.id.in_([row.id for row in rows])).values(state=QueryState.ANSWERED))
    return rows


def test_ten_lines_behind_a_batch_of_fifty_thousand_are_all_in_the_next_window(session: Session) -> None:
    large, small = (add_batch(session, add_tenant(session, name)) for name in ("large", "small"))
    fill(session, large, 50_000)
    rotation = DeficitRoundRobin()
    alone = served(session, rotation)
    fill(session, small, 10)

    window = Counter(row.tenant_id for row in served(session, rotation))

    assert len(alone) == SETTINGS.window_size
    assert window == {"tenant_small": 10, "tenant_large": SETTINGS.window_size - 10}


def test_a_batch_of_dear_lines_does_not_delay_ten_cheap_ones_either(session: Session) -> None:
    large, small = (add_batch(session, add_tenant(session, name)) for name in ("large", "small"))
    fill(session, large, 2_000, tokens_max=10_000)
    fill(session, small, 10, tokens_max=10)

    assert Counter(row.tenant_id for row in served(session, DeficitRoundRobin()))["tenant_small"] == 10


def test_weights_hold_over_many_windows_whatever_the_lines_cost(session: Session) -> None:
    weights, tokens = {"one": 1.0, "two": 2.0, "five": 5.0}, {"one": 50, "two": 100, "five": 400}
    for name, weight in weights.items():
        fill(session, add_batch(session, add_tenant(session, name, weight=weight)), 1_500, tokens_max=tokens[name])
    rotation, spent = DeficitRoundRobin(), Counter[str]()

    for _ in range(20):
        for row in served(session, rotation):
            spent[row.tenant_id] += len(row.body_json or "") // 4 + (row.tokens_max or 0)

    shares = {name: spent[f"tenant_{name}"] / weight for name, weight in weights.items()}
    assert max(shares.values()) == pytest.approx(min(shares.values()), rel=0.1)


def test_priority_reorders_a_tenants_own_lines_and_nobody_elses(session: Session) -> None:
    mine, theirs = (add_batch(session, add_tenant(session, name)) for name in ("mine", "theirs"))
    fill(session, mine, 100)
    urgent = [add_query(session, mine, priority=100, samples_max=2, tokens_max=100).id for _ in range(20)]
    fill(session, theirs, 100)

    window = served(session, DeficitRoundRobin())

    assert [row.id for row in window if row.tenant_id == mine.tenant_id][:20] == urgent
    assert Counter(row.tenant_id for row in window)[theirs.tenant_id] == SETTINGS.window_size // 2


def test_lines_not_answered_within_the_completion_window_are_in_the_error_file(session: Session) -> None:
    batch = add_batch(session, add_tenant(session))
    batch.expires_at = NOW
    for state in (QueryState.QUEUED, QueryState.PLANNED, QueryState.PARKED, QueryState.ANSWERED):
        add_query(session, batch, state=state)

    expire_batches(session, NOW - timedelta(seconds=1))
    before = session.get_one(Batch, batch.id).state
    expire_batches(session, NOW)
    finalize(session, batch, NOW)

    session.refresh(batch)
    errors = [json.loads(line) for line in b"".join(output_chunks(session, batch, "error")).splitlines()]
    assert (before, batch.state) == (BatchState.IN_PROGRESS, BatchState.EXPIRED)
    assert [line["error"]["code"] for line in errors] == ["batch_expired"] * 3
