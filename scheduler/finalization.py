"""How a batch ends, and what it leaves: its output and error lines, and each query's answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Batch, File, PlanRow, QueryRow, SampleRow, Wave
from scheduler.core.pricing import format_usd
from scheduler.states import QUERY_FINAL, QUERY_OPEN, BatchState, QueryState
from scheduler.unread import is_called_off_unread

Kind = Literal["output", "error"]

PAGE = 500
"""Queries read at once: large enough that statements cost little per line, small enough to hold."""

HAS_ANSWER = or_(
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
    """A query with what belongs to its outcome; `model` is the one that gave the answer."""

    query: QueryRow
    sample: SampleRow | None
    model: str | None
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
    wanted = HAS_ANSWER if kind == "output" else and_(QueryRow.state.in_(QUERY_FINAL), ~HAS_ANSWER)
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
    found = select(SampleRow, Wave.model).join(Wave, Wave.id == SampleRow.wave_id).where(SampleRow.id.in_(chosen))
    samples = {row.id: (row, model) for row, model in session.execute(found)}
    ids = [query.id for query in queries]
    last_plans = select(func.max(PlanRow.id)).where(PlanRow.query_id.in_(ids)).group_by(PlanRow.query_id)
    plans = {row.query_id: row for row in session.scalars(select(PlanRow).where(PlanRow.id.in_(last_plans)))}
    answers = []
    for query in queries:
        sample, model = samples.get(query.chosen_sample_id or 0, (None, query.model))
        answers.append(Answer(query=query, sample=sample, model=model, plan=plans.get(query.id)))
    return answers


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
        "model": answer.model,
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
        "cost_usd": usd_of(query.spent_nanousd),
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


def usd_of(nanousd: int) -> str:
    """An amount as replies spell it, without its unit."""
    return format_usd(nanousd).removesuffix(" USD")


def _digest(query: QueryRow) -> str:
    return hashlib.sha256(f"{query.batch_id}:{query.id}".encode()).hexdigest()[:24]
