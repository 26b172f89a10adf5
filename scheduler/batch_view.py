"""A batch as it is shown: OpenAI's object, with how far it is and what it costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Batch, QueryRow, Tenant
from scheduler.finalization import HAS_ANSWER, usd_of
from scheduler.states import BATCH_FINAL, QUERY_FINAL, QueryState


def batch_object(session: Session, batch: Batch) -> dict[str, Any]:
    """The batch in OpenAI's shape, with how far it is and what it costs."""
    [batch_as_object] = batch_objects(session, [batch])
    return batch_as_object


def batch_objects(session: Session, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """Several batches in OpenAI's shape, counted in one statement."""
    groups: dict[str, list[Any]] = {batch.id: [] for batch in batches}
    for row in session.execute(_counts([batch.id for batch in batches])):
        groups[row.batch_id].append(row)
    tenants = select(Tenant.id, Tenant.name).where(Tenant.id.in_({batch.tenant_id for batch in batches}))
    names = {row.id: row.name for row in session.execute(tenants)}
    return [_batch_object(batch, groups[batch.id], names[batch.tenant_id]) for batch in batches]


def _counts(batch_ids: Sequence[str]) -> Any:
    """What the queries of these batches add up to, by state and cause of waiting."""
    has_answer = func.count().filter(HAS_ANSWER)
    return (
        select(
            QueryRow.batch_id,
            QueryRow.state,
            QueryRow.parked_because,
            QueryRow.model,
            func.count().label("queries"),
            has_answer.label("with_answer"),
            func.sum(QueryRow.samples_drawn).label("samples"),
            func.sum(QueryRow.prompt_tokens).label("prompt"),
            func.sum(QueryRow.cached_tokens).label("cached"),
            func.sum(QueryRow.completion_tokens).label("completion"),
            func.sum(QueryRow.reasoning_tokens).label("reasoning"),
            func.count(QueryRow.started_at).filter(QueryRow.finished_at.is_not(None)).label("worked_on"),
            func.max(QueryRow.finished_at).label("last_finished_at"),
        )
        .where(QueryRow.batch_id.in_(batch_ids))
        .group_by(QueryRow.batch_id, QueryRow.state, QueryRow.parked_because, QueryRow.model)
    )


def _batch_object(batch: Batch, groups: Sequence[Any], tenant: str) -> dict[str, Any]:
    total = sum(group.queries for group in groups)
    completed = sum(group.with_answer for group in groups)
    ended = sum(group.queries for group in groups if group.state in QUERY_FINAL)
    models = {group.model for group in groups if group.model is not None}
    is_over = batch.state in BATCH_FINAL  # before that, both files may still get lines
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": min(models) if len(models) == 1 else None,
        "errors": json.loads(batch.errors_json) if batch.errors_json else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.state,
        "output_file_id": batch.output_file_id if completed or not is_over else None,
        "error_file_id": batch.error_file_id if ended > completed or not is_over else None,
        **{name: _epoch(getattr(batch, name)) for name in _INSTANTS},
        "request_counts": {"total": total, "completed": completed, "failed": ended - completed},
        "usage": _usage(groups),
        "metadata": json.loads(batch.metadata_json) if batch.metadata_json else None,
        "allotd": {"tenant": tenant, **_progress(batch, groups, total - ended)},
    }


_INSTANTS = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


def _usage(groups: Sequence[Any]) -> dict[str, Any]:
    prompt, completion = (sum(int(getattr(group, name)) for group in groups) for name in ("prompt", "completion"))
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": sum(int(group.cached) for group in groups)},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": sum(int(group.reasoning) for group in groups)},
        "total_tokens": prompt + completion,
    }


def _progress(batch: Batch, groups: Sequence[Any], still_open: int) -> dict[str, Any]:
    states: Counter[str] = Counter()
    parked: Counter[str] = Counter()
    for group in groups:
        states[group.state] += group.queries
        if group.state == QueryState.PARKED:
            parked[group.parked_because] += group.queries
    rate = _queries_per_s(batch, groups)
    return {
        "states": dict(states),
        **_money("spent", batch.spent_nanousd),
        **_money("held", batch.held_nanousd),
        **_money("limit", batch.limit_nanousd),
        "parked": [{"because": because, "queries": queries} for because, queries in sorted(parked.items())],
        "samples": sum(int(group.samples) for group in groups),
        "queries_per_s": round(rate, 3) if rate is not None else None,
        "eta_s": _eta_s(still_open, rate),
    }


def _queries_per_s(batch: Batch, groups: Sequence[Any]) -> float | None:
    """How fast queries were finished, from the batch's start to the last of them."""
    worked_on = [group for group in groups if group.worked_on]
    if not worked_on or batch.in_progress_at is None:
        return None
    elapsed = (max(group.last_finished_at for group in worked_on) - batch.in_progress_at).total_seconds()
    return sum(group.worked_on for group in worked_on) / elapsed if elapsed > 0 else None


def _eta_s(still_open: int, rate: float | None) -> float | None:
    if not still_open:
        return 0.0
    return round(still_open / rate, 1) if rate else None


def _money(name: str, nanousd: int | None) -> Mapping[str, Any]:
    return {f"{name}_nanousd": nanousd, f"{name}_usd": usd_of(nanousd) if nanousd is not None else None}


def _epoch(instant: datetime | None) -> int | None:
    return int(instant.timestamp()) if instant is not None else None
