"""How work is called off before its end: a batch that is cancelled, a query whose client will not wait for money."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import Batch, QueryRow
from scheduler.errors import Conflict, NotFound
from scheduler.recovery import best_of_kept, call_off
from scheduler.settlement import kept_samples
from scheduler.states import BatchState, QueryState

CANCELLABLE = (BatchState.VALIDATING, BatchState.IN_PROGRESS)


def find_batch(session: Session, tenant_id: str | None, batch_id: str) -> Batch:
    """A batch that this tenant may see (any, for an admin's None). Raises NotFound, also for another tenant's."""
    batch = session.get(Batch, batch_id, populate_existing=True)
    if batch is None or tenant_id not in {None, batch.tenant_id}:
        raise NotFound(f"There is no batch '{batch_id[:64]}'.", param="batch_id")
    return batch


def cancel_batch(session: Session, tenant_id: str | None, batch_id: str, now: datetime) -> Batch:
    """Let nothing more of a batch begin; doing it twice is doing it once. `cancel_waiting` ends what has not begun.

    Raises NotFound, or Conflict where the batch has ended already.
    """
    batch = find_batch(session, tenant_id, batch_id)
    moved = session.execute(
        update(Batch)
        .where(Batch.id == batch_id, Batch.state.in_(CANCELLABLE))
        .values(state=BatchState.CANCELLING, cancelling_at=now)
        .returning(Batch.id)
    ).first()
    session.refresh(batch)
    if moved is None and batch.state != BatchState.CANCELLING:
        raise Conflict(f"Batch {batch_id} is {batch.state} and cannot be cancelled any more.", param="batch_id")
    return batch


def cancel_waiting(session: Session, batch_id: str, now: datetime) -> None:
    """End the queries of a batch being cancelled that no worker is running; a worker's own end within a wave.

    A transaction of its own, so that no worker waits for the batch's row while this waits for a query's. The daemon
    does the same at its next tick.
    """
    batch = session.get_one(Batch, batch_id, populate_existing=True)
    if batch.state == BatchState.CANCELLING:
        call_off(session, batch, QueryState.CANCELLED, now)


def stop_parked(session: Session, query_id: int, now: datetime) -> bool:
    """End a parked query as `budget_stopped`, with the best of the samples it has; returns whether it was parked."""
    row = session.scalars(
        select(QueryRow)
        .where(QueryRow.id == query_id, QueryRow.state == QueryState.PARKED)
        .execution_options(populate_existing=True)
    ).first()
    if row is None:
        return False
    values = {
        "state": QueryState.BUDGET_STOPPED,
        "finished_at": now,
        "because": f"{row.parked_because} limit reached",
    }
    if row.samples_drawn:
        kept = kept_samples(session, [query_id]).get(query_id, ())
        outcome, sample_id = best_of_kept(session, row, kept)
        values |= {
            "chosen_sample_id": sample_id,
            "confidence": outcome.confidence,
            "correct": outcome.chosen.correct if outcome.chosen is not None else None,
        }
    moved = session.execute(
        update(QueryRow)
        .where(QueryRow.id == query_id, QueryRow.state == QueryState.PARKED)
        .values(**values)
        .returning(QueryRow.id)
    ).first()
    return moved is not None
