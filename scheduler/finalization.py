"""How a batch ends, and what is read of it: its object, its output and error lines, and each query's answer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Batch, File, PlanRow, QueryRow, SampleRow, Tenant
from scheduler.core.pricing import format_usd
from scheduler.states import BATCH_FINAL, QUERY_FINAL, QUERY_OPEN, BatchState, QueryState
from scheduler.unread import is_called_off_unread

Kind = Literal["output", "error"]

PAGE = 500
"""Queries read at once: large enough that statements cost little per line, small enough to hold."""

_HAS_ANSWER = or_(
    QueryRow.state == QueryState.ANSWERED,
    and_(QueryRow.state.in_([QueryState.BUDGET_STOPPED, QueryState.EXPIRED]), QueryRow.chosen_sample_id.is_not(None)),
)
_REASONS = {
    QueryState.EXPIRED: ("batch_expired", "The batch's completion window ended before this query was answered."),
    QueryState.CANCELLED: ("batch_cancelled", "The batch was cancelled before this query was answered."),
    QueryState.BUDGET_STOPPED: ("budget_stopped", "A spending limit was reached before there was any answer"),
    QueryState.ABANDONED: ("abandoned", "The query was not worth its expected cost"),
    QueryState.FAILED: ("internal_error", "The query failed"),
}
"""What each outcome without an answer is called, and its sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A query with what belongs to its outcome."""

    query: QueryRow
    sample: SampleRow | None
    plan: PlanRow | None


def finalize(session: Session, batch: Batch, now: datetime) -> bool:
    """End a batch that has no open query left; returns whether it did.

    A batch whose window has passed ends as `expired`, one being cancelled as `cancelled`, any other as `completed`.
    """
    moves: dict[str, dict[str, Any]] = {
        BatchState.IN_PROGRESS: {"state": BatchState.COMPLETED, "finalizing_at": now, "completed_at": now},
        BatchState.FINALIZING: {"state": BatchState.COMPLETED, "completed_at": now},
        BatchState.CANCELLING: {"state": BatchState.CANCELLED, "cancelled_at": now},
    }
    move = moves.get(batch.state)
    if move is None or _is_open(session, batch) or is_called_off_unread(session, batch.id):
        return False
    if batch.state != BatchState.CANCELLING and batch.expired_at is not None:
        move = {"state": BatchState.EXPIRED}
    moved = session.execute(
        update(Batch).where(Batch.id == batch.id, Batch.state == batch.state).values(**move).returning(Batch.id)
    ).first()
    if moved is not None:
        start_file_clock(session, batch, now)
    return moved is not None


def start_file_clock(session: Session, batch: Batch, now: datetime) -> None:
    """Let the output and error file of a batch that has ended expire when the batch asked for it."""
    if batch.output_expires_after_s is not None:
        expires_at = now + timedelta(seconds=batch.output_expires_after_s)
        views = [batch.output_file_id, batch.error_file_id]
        session.execute(update(File).where(File.id.in_(views)).values(expires_at=expires_at))


def output_chunks(session: Session, batch: Batch, kind: Kind, page: int = PAGE) -> Iterator[bytes]:
    """The finished queries of a batch as JSONL, in the order in which they finished, a page at a time."""
    wanted = _HAS_ANSWER if kind == "output" else and_(QueryRow.state.in_(QUERY_FINAL), ~_HAS_ANSWER)
    after: tuple[datetime, int] | None = None
    while True:
        statement = select(QueryRow).where(QueryRow.batch_id == batch.id, wanted)
        if after is not None:
            finished_at, last_id = after
            later = or_(QueryRow.finished_at > finished_at, QueryRow.id > last_id)
            statement = statement.where(QueryRow.finished_at >= finished_at, later)
        rows = session.scalars(statement.order_by(QueryRow.finished_at, QueryRow.id).limit(page)).all()
        if not rows:
            return
        after = (_finished_at(rows[-1]), rows[-1].id)
        lines = _output_lines(session, rows) if kind == "output" else [_error_line(row) for row in rows]
        yield b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def response_body(session: Session, query: QueryRow) -> dict[str, Any]:
    """A query's answer as a chat completion, with what allotd did for it."""
    [answer] = _with_outcomes(session, [query])
    return _completion(answer)


def error_line(session: Session, query: QueryRow) -> dict[str, Any]:  # noqa: ARG001 (the same shape as response_body)
    """The error file's line of a query that ended without an answer."""
    return _error_line(query)


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


def request_id(query: QueryRow) -> str:
    """The id that a query is known by outside; it tells nothing of how many there are."""
    return f"batch_req_{_digest(query)}"


def _is_open(session: Session, batch: Batch) -> bool:
    still_open = select(QueryRow.id).where(QueryRow.batch_id == batch.id, QueryRow.state.in_(QUERY_OPEN)).limit(1)
    return session.scalar(still_open) is not None


def _finished_at(query: QueryRow) -> datetime:
    assert query.finished_at is not None, "a query with an outcome has the time it ended"
    return query.finished_at


def _with_outcomes(session: Session, queries: Sequence[QueryRow]) -> list[Answer]:
    """The queries with their chosen samples and their last plans, in two statements however many they are."""
    chosen = [query.chosen_sample_id for query in queries if query.chosen_sample_id is not None]
    samples = {row.id: row for row in session.scalars(select(SampleRow).where(SampleRow.id.in_(chosen)))}
    ids = [query.id for query in queries]
    last_plans = select(func.max(PlanRow.id)).where(PlanRow.query_id.in_(ids)).group_by(PlanRow.query_id)
    plans = {row.query_id: row for row in session.scalars(select(PlanRow).where(PlanRow.id.in_(last_plans)))}
    return [
        Answer(query=query, sample=samples.get(query.chosen_sample_id or 0), plan=plans.get(query.id))
        for query in queries
    ]


def _output_lines(session: Session, queries: Sequence[QueryRow]) -> list[dict[str, Any]]:
    return [
        {
            "id": request_id(answer.query),
            "custom_id": answer.query.custom_id,
            "response": {
                "status_code": 200,
                "request_id": f"req_{_digest(answer.query)}",
                "body": _completion(answer),
            },
            "error": None,
        }
        for answer in _with_outcomes(session, queries)
    ]


def _completion(answer: Answer) -> dict[str, Any]:
    query, sample = answer.query, answer.sample
    message: dict[str, Any] = {"role": "assistant", "content": sample.text if sample is not None else None}
    if sample is not None and sample.message_json is not None:
        message |= json.loads(sample.message_json)
    return {
        "id": f"chatcmpl-{_digest(query)}",
        "object": "chat.completion",
        "created": int(_finished_at(query).timestamp()),
        "model": query.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": sample.finish_reason if sample is not None else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": query.prompt_tokens,
            "completion_tokens": query.completion_tokens,
            "total_tokens": query.prompt_tokens + query.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": query.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": query.reasoning_tokens},
        },
        "allotd": _spent_on(answer),
    }


def _spent_on(answer: Answer) -> dict[str, Any]:
    query, plan = answer.query, answer.plan
    started_at = query.started_at or query.created_at
    return {
        "strategy": plan.strategy if plan is not None else query.strategy,
        "samples": query.samples_drawn,
        "stop_reason": query.because,
        "cost_usd": _usd(query.spent_nanousd),
        "confidence": query.confidence,
        "predicted_difficulty": 1 - plan.alpha / (plan.alpha + plan.beta) if plan is not None else None,
        "predictor_version": plan.predictor_version if plan is not None else None,
        "latency_s": round((_finished_at(query) - started_at).total_seconds(), 3),
        "outcome": query.state,
        "correct": query.correct,
    }


def _error_line(query: QueryRow) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(query.error_json) if query.error_json else {}
    code, message = _REASONS[QueryState(query.state)]
    if query.state in {QueryState.BUDGET_STOPPED, QueryState.ABANDONED, QueryState.FAILED}:
        message = f"{message}: {query.because}." if query.because else f"{message}."
    return {
        "id": request_id(query),
        "custom_id": query.custom_id if query.custom_id is not None else told.get("custom_id"),
        "response": None,
        "error": {
            "code": told.get("code", code),
            "message": told.get("message", message),
            "param": told.get("param"),
            "line": query.line,
        },
    }


def _counts(batch_ids: Sequence[str]) -> Any:
    """What the queries of these batches add up to, by state and cause of waiting."""
    has_answer = func.count().filter(_HAS_ANSWER)
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
    return {f"{name}_nanousd": nanousd, f"{name}_usd": _usd(nanousd) if nanousd is not None else None}


def _usd(nanousd: int) -> str:
    return format_usd(nanousd).removesuffix(" USD")


def _epoch(instant: datetime | None) -> int | None:
    return int(instant.timestamp()) if instant is not None else None


def _digest(query: QueryRow) -> str:
    return hashlib.sha256(f"{query.batch_id}:{query.id}".encode()).hexdigest()[:24]
