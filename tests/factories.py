"""Rows for tests: a tenant with a price and a batch of queries, made with as few words as a test needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from models.tables import Attempt, Batch, Cap, LlmRow, PlanRow, PriceRow, QueryRow, Table, Tenant, Worker
from scheduler import ledger
from scheduler.database import open_database, sessions
from scheduler.ledger import Funded
from scheduler.states import AttemptState, BatchState, QueryState

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
MODEL = "fake"
WORKER = "worker-1"
_numbers = count(1)


@contextmanager
def new_sessions(url: str = "sqlite://") -> Iterator[sessionmaker[Session]]:
    """Sessions on a database with all tables; in memory unless another is named."""
    engine = open_database(url)
    Table.metadata.create_all(engine)
    try:
        yield sessions(engine)
    finally:
        engine.dispose()


def add_tenant(session: Session, name: str = "acme", **values: Any) -> Tenant:
    """A tenant, and a served model whose prompt tokens cost 1 nano-dollar each and whose completion tokens 2."""
    if session.get(LlmRow, MODEL) is None:
        add_llm(session, MODEL, prompt_nanousd=1, completion_nanousd=2)
    tenant = Tenant(id=f"tenant_{name}", name=name, created_at=NOW, **values)
    session.add(tenant)
    session.flush()
    return tenant


def add_llm(session: Session, name: str, *, prompt_nanousd: int, completion_nanousd: int) -> None:
    """Another served model with its price per token."""
    session.add(LlmRow(name=name, context_tokens=4096, first_seen_at=NOW, last_seen_at=NOW))
    session.add(
        PriceRow(
            model=name,
            effective_at=NOW - timedelta(days=400),
            prompt_nanousd=prompt_nanousd,
            cached_nanousd=prompt_nanousd,
            completion_nanousd=completion_nanousd,
            created_at=NOW,
        )
    )
    session.flush()


def add_cap(
    session: Session, tenant: Tenant, limit_nanousd: int, period: str = "total", model: str | None = None
) -> Cap:
    """A cap as it is before anything was spent."""
    cap = Cap(
        id=f"cap_{next(_numbers)}",
        tenant_id=tenant.id,
        period=period,
        limit_nanousd=limit_nanousd,
        model=model,
        created_at=NOW,
    )
    session.add(cap)
    session.flush()
    return cap


def add_batch(session: Session, tenant: Tenant, *, limit_nanousd: int | None = None, **values: Any) -> Batch:
    """A batch in progress."""
    batch = Batch(
        id=f"batch_{next(_numbers)}",
        tenant_id=tenant.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        limit_nanousd=limit_nanousd,
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
        **({"state": BatchState.IN_PROGRESS} | values),
    )
    session.add(batch)
    session.flush()
    return batch


def add_query(session: Session, batch: Batch, question: str = "What is 12 + 9?", **values: Any) -> QueryRow:
    """A queued query."""
    number = next(_numbers)
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **values.pop("body", {})}
    query = QueryRow(
        batch_id=batch.id,
        tenant_id=batch.tenant_id,
        line=number,
        custom_id=f"line-{number}",
        body_json=json.dumps(body),
        created_at=NOW,
        **({"state": QueryState.QUEUED, "model": MODEL} | values),
    )
    session.add(query)
    session.flush()
    return query


def add_worker(session: Session, name: str = WORKER, *, capacity: int = 8, heartbeat_at: datetime = NOW) -> Worker:
    """A worker that beat a moment ago."""
    worker = Worker(id=name, capacity=capacity, started_at=NOW, heartbeat_at=heartbeat_at)
    session.add(worker)
    session.flush()
    return worker


def fund(session: Session, query: QueryRow, *, worker_id: str = WORKER, now: datetime = NOW) -> Funded:
    """An attempt at a query, running on a worker."""
    plan = PlanRow(
        query_id=query.id,
        model=MODEL,
        strategy="self_consistency",
        samples_max=8,
        tokens_max=64,
        alpha=1.0,
        beta=1.0,
        tokens_p50=16,
        tokens_p90=32,
        predictor_version="test",
        created_at=now,
    )
    session.add(plan)
    session.flush()
    query.attempts += 1
    query.state = QueryState.RUNNING
    attempt = Attempt(
        query_id=query.id,
        plan_id=plan.id,
        tenant_id=query.tenant_id,
        number=query.attempts,
        state=AttemptState.RUNNING,
        worker_id=worker_id,
        created_at=now,
    )
    session.add(attempt)
    session.flush()
    return Funded(
        attempt_id=attempt.id,
        worker_id=worker_id,
        query_id=query.id,
        batch_id=query.batch_id,
        tenant_id=query.tenant_id,
        model=MODEL,
        price=ledger.price_at(session, MODEL, now),
    )
