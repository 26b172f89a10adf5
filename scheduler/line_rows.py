"""How the lines of a file become rows: queued where they can run, failed with the reason where they cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table as SqlTable
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from models.tables import Batch, LlmRow, PriceRow, QueryRow
from scheduler.bulk import insert_rows
from scheduler.jsonlines import Line, salvaged_id
from scheduler.predictors import models_remembered
from scheduler.requests import Defaults, KnownLlm, Limits, ParsedQuery, Rejection, batch_options, parse_line
from scheduler.settings import Settings
from scheduler.states import BatchState, QueryState
from scheduler.unread import ENDS_AS


def insert_lines(session: Session, batch: Batch, lines: Sequence[Line], settings: Settings, now: datetime) -> None:
    """One row per line: queued where it can run, failed where it cannot."""
    if not lines:
        return
    limits = known_limits(session, now, settings.samples_limit)
    options, _ = batch_options(json.loads(batch.metadata_json or "{}"))
    defaults = Defaults(options=options, endpoint=batch.endpoint)
    parsed = [parse_one(line, settings.line_bytes_max, defaults, limits) for line in lines]
    taken = _taken_ids(session, batch.id, [each.custom_id for each in parsed if each.custom_id is not None])
    rows = [row_of(without_duplicates(each, taken), batch.id, batch.tenant_id, now) for each in parsed]
    if (outcome := ENDS_AS.get(BatchState(batch.state))) is not None:
        rows = [_called_off(row, outcome, now) for row in rows]
    insert_rows(session, _QUERIES, rows)


def _called_off(row: dict[str, Any], outcome: QueryState, now: datetime) -> dict[str, Any]:
    """The row of a line whose batch was over before it was read; a line that could never have run says why."""
    if row["state"] == QueryState.FAILED and row["because"] not in _FOR_NOW:
        return row
    return {**row, "state": outcome, "finished_at": now, "because": outcome.value, "error_json": None}


def parse_one(line: Line, line_bytes_max: int, defaults: Defaults, limits: Limits) -> ParsedQuery | Rejection:
    """What a line of a file asks for, or why it cannot run."""
    if line.content is None:
        message = f"Line {line.number} is longer than {line_bytes_max} bytes; shorten it."
        return Rejection(line=line.number, code="line_too_long", message=message, said=salvaged_id(line.start))
    return parse_line(line.content, line.number, defaults, limits)


def _taken_ids(session: Session, batch_id: str, custom_ids: Sequence[str]) -> dict[str, int]:
    """Which of these ids stand on earlier lines of the batch, and on which."""
    taken: dict[str, int] = {}
    for begin in range(0, len(custom_ids), IDS_PER_LOOKUP):
        some = custom_ids[begin : begin + IDS_PER_LOOKUP]
        rows = session.execute(_TAKEN, {"batch_id": batch_id, "custom_ids": some})
        taken.update({str(row.custom_id): row.line for row in rows})
    return taken


def without_duplicates(parsed: ParsedQuery | Rejection, taken: dict[str, int]) -> ParsedQuery | Rejection:
    """The line itself if it is the first with its custom_id, else a rejection that names both lines."""
    if parsed.custom_id is None:
        return parsed
    first = taken.setdefault(parsed.custom_id, parsed.line)
    if first == parsed.line:
        return parsed
    if isinstance(parsed, Rejection):
        parsed.said, parsed.custom_id = parsed.custom_id, None
        return parsed
    shown = parsed.custom_id if len(parsed.custom_id) <= 64 else parsed.custom_id[:64] + "..."
    problem = f"custom_id '{shown}' is already that of line {first}; give each line one of its own."
    return Rejection(
        line=parsed.line,
        code="duplicate_custom_id",
        message=f"Line {parsed.line}: {problem}",
        param="custom_id",
        said=parsed.custom_id,
    )


def row_of(parsed: ParsedQuery | Rejection, batch_id: str, tenant_id: str, now: datetime) -> dict[str, Any]:
    """The columns of a line's row; the same for every line, so that they go into one statement."""
    row = _failed(parsed, now) if isinstance(parsed, Rejection) else queued_columns(parsed)
    row["batch_id"] = batch_id
    row["tenant_id"] = tenant_id
    row["line"] = parsed.line
    row["custom_id"] = parsed.custom_id
    row["created_at"] = now
    return row


def queued_columns(parsed: ParsedQuery) -> dict[str, Any]:
    """The columns of a query that can run."""
    return {
        "state": QueryState.QUEUED,
        "finished_at": None,
        "because": None,
        "error_json": None,
        "model": parsed.model,
        "body_json": parsed.body_json,
        "strategy": parsed.strategy,
        "samples_max": parsed.samples_max,
        "tokens_max": parsed.tokens_max,
        "verifier": parsed.verifier,
        "reference": parsed.reference,
        "task": parsed.task,
        "priority": parsed.priority,
        "limit_nanousd": parsed.limit_nanousd,
        "models_json": json.dumps(parsed.models) if parsed.models else None,
    }


def _failed(rejection: Rejection, now: datetime) -> dict[str, Any]:
    return {
        "state": QueryState.FAILED,
        "finished_at": now,
        "because": rejection.code,
        "error_json": rejection.as_json(),
        "model": None,
        "body_json": None,
        "strategy": "auto",
        "samples_max": None,
        "tokens_max": None,
        "verifier": None,
        "reference": None,
        "task": None,
        "priority": 0,
        "limit_nanousd": None,
        "models_json": None,
    }


def known_limits(session: Session, now: datetime, samples_limit: int) -> Limits:
    """The models that are served and priced at this instant."""
    priced = set(session.scalars(select(PriceRow.model).where(PriceRow.effective_at <= now).distinct()))
    remembered = models_remembered(session)
    llms = {
        llm.name: KnownLlm(
            context_tokens=llm.context_tokens,
            tokenizer_path=llm.tokenizer_path,
            is_priced=llm.name in priced,
            has_history=llm.name in remembered,
        )
        for llm in session.scalars(select(LlmRow))
    }
    return Limits(llms=llms, samples_limit=samples_limit)


IDS_PER_LOOKUP = 1000
_FOR_NOW = frozenset({"model_not_found", "model_unpriced"})
"""Why a line cannot run that might run at another time; where nothing runs, that is no reason."""
_QUERIES = cast("SqlTable", QueryRow.__table__)
_TAKEN = select(QueryRow.custom_id, QueryRow.line).where(
    QueryRow.batch_id == bindparam("batch_id"), QueryRow.custom_id.in_(bindparam("custom_ids", expanding=True))
)
