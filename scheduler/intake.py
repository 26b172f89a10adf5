"""How a file becomes queries: a batch is opened, its lines are read a transaction at a time, and none is dropped."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.tables import Batch, File, QueryRow, Tenant
from scheduler.admission import check_queue, hold_queue
from scheduler.errors import Conflict, InvalidRequest, QueueFull
from scheduler.files import OUTPUT_PURPOSE, PURPOSE, find_file, read_chunks
from scheduler.finalization import start_file_clock
from scheduler.jsonlines import BYTE_ORDER_MARK, Line, foreign_start, split_lines
from scheduler.line_rows import insert_lines, known_limits, row_of
from scheduler.requests import (
    ENDPOINT,
    SAMPLES_MAX,
    batch_options,
    parse_chat_body,
)
from scheduler.settings import Settings
from scheduler.states import BatchState, QueryState
from scheduler.unread import is_called_off_unread

WINDOW = "24h"
WINDOW_MAX = timedelta(days=30)
METADATA_PAIRS_MAX, METADATA_KEY_MAX, METADATA_VALUE_MAX = 16, 64, 512
IDEMPOTENCY_KEY_MAX = 255
INTERACTIVE_WINDOW = timedelta(hours=1)
"""How long a query of a waiting client may wait; the client itself gives up much sooner."""
INTERACTIVE_PRIORITY = 100
"""Somebody waits for it, so within its tenant it goes before any line of a batch."""
STEP_BYTES = 8 * 1024 * 1024
"""What one transaction reads at most, however few lines that is: it bounds memory and the time others wait."""
REASONS_MAX = 100
"""Reasons that a failed batch or a dry run lists; the error file has all of them."""


def create_batch(
    session: Session,
    tenant_id: str,
    *,
    input_file_id: str,
    endpoint: str,
    completion_window: str = WINDOW,
    metadata: Mapping[str, str] | None = None,
    cost_max_nanousd: int | None = None,
    output_expires_after_s: int | None = None,
    idempotency_key: str | None = None,
    now: datetime,
) -> Batch:
    """Open a batch on an uploaded file; its lines are read later, by `advance_intake`.

    The same idempotency key returns the same batch. Raises InvalidRequest, NotFound for a file that is not this
    tenant's, Conflict where the key came with another request before, or QueueFull where no more of its queries may
    wait.
    """
    if endpoint != ENDPOINT:
        raise InvalidRequest(f"The endpoint {endpoint[:64]!r} is not supported; use '{ENDPOINT}'.", param="endpoint")
    window = _window(completion_window)
    metadata = _checked_metadata(metadata or {})
    _, limit_in_metadata = batch_options(metadata)
    limits = [limit for limit in (cost_max_nanousd, limit_in_metadata) if limit is not None]
    wanted: dict[str, Any] = {
        "input_file_id": input_file_id,
        "endpoint": endpoint,
        "completion_window": completion_window,
        "metadata_json": json.dumps(metadata, sort_keys=True) if metadata else None,
        "limit_nanousd": min(limits, default=None),
        "output_expires_after_s": output_expires_after_s,
    }
    if idempotency_key is not None:
        _check_idempotency_key(idempotency_key)
        if (known := _same_request(session, tenant_id, idempotency_key, wanted)) is not None:
            return known
    check_queue(session, tenant_id, session.scalar(select(Tenant.queued_max).where(Tenant.id == tenant_id)))
    file = find_file(session, tenant_id, input_file_id)
    if file.purpose != PURPOSE:
        raise InvalidRequest(f"File {file.id} has purpose '{file.purpose}'; upload one with purpose '{PURPOSE}'.")
    try:
        with session.begin_nested():
            return _open_batch(session, tenant_id, window, idempotency_key, wanted, now)
    except IntegrityError:
        # Another request with the same key was first.
        known = _same_request(session, tenant_id, idempotency_key or "", wanted)
        if known is None:
            raise
        return known


def create_interactive(
    session: Session,
    tenant_id: str,
    body: bytes | Mapping[str, Any],
    *,
    now: datetime,
    samples_limit: int = SAMPLES_MAX,
) -> int:
    """Queue one query of a client that waits; returns its id. Raises what `parse_chat_body` raises, or QueueFull."""
    query = parse_chat_body(body, known_limits(session, now, samples_limit))
    check_queue(session, tenant_id, hold_queue(session, tenant_id))
    batch = Batch(
        id=_new_batch_id(),
        tenant_id=tenant_id,
        state=BatchState.IN_PROGRESS,
        interactive=True,
        endpoint=ENDPOINT,
        completion_window="1h",
        lines_read=1,
        created_at=now,
        in_progress_at=now,
        expires_at=now + INTERACTIVE_WINDOW,
    )
    session.add(batch)
    session.flush()
    values = row_of(query, batch.id, tenant_id, now)
    values["priority"] = query.priority or INTERACTIVE_PRIORITY
    return session.execute(insert(QueryRow).returning(QueryRow.id), values).scalar_one()


def advance_intake(session: Session, batch_id: str, settings: Settings, now: datetime, lines: int = 1000) -> bool:
    """Turn the next lines of a batch's file into queries; returns whether nothing is left to read.

    The rows and the place in the file are written in the same transaction, so a crash between two calls loses and
    repeats nothing. Queries wait as `queued`, and none is planned before the batch is `in_progress`. Where the batch
    was cancelled or expired meanwhile, the rest of its lines end as it does, so that each of them is accounted for.
    """
    batch = session.get(Batch, batch_id, populate_existing=True)
    if batch is None or batch.input_file_id is None or not _is_being_read(session, batch):
        return True
    queued_max = hold_queue(session, batch.tenant_id)
    chunks = read_chunks(session, batch.input_file_id, batch.bytes_read)
    if batch.bytes_read == 0:
        first = next(chunks, b"")
        if (wrong := foreign_start(first)) is not None:
            return _refuse_file(session, batch, [_file_error("invalid_encoding", wrong)], now)
        chunks = chain((first,), chunks)
    taken, is_end = _next_lines(batch, chunks, settings.line_bytes_max, lines)
    last = taken[-1] if taken else Line(batch.lines_read, None, batch.bytes_read)
    if not _move_on(session, batch, last):
        return False
    insert_lines(session, batch, taken, settings, now)
    if last.number > settings.lines_max and _count(session, batch) > settings.lines_max:
        message = f"The file has more than {settings.lines_max} lines; split it into several batches."
        return _refuse_file(session, batch, [_file_error("too_many_lines", message)], now)
    try:
        check_queue(session, batch.tenant_id, queued_max, coming=0)
    except QueueFull as full:
        # All or nothing, as for OpenAI's own limit: half a batch would have to be found out and sent again.
        return _refuse_file(session, batch, [_file_error(full.code, _too_many(full, batch))], now)
    return _end_of_file(session, batch, now) if is_end else False


def _window(completion_window: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,4})([hd])", completion_window)
    window = timedelta(0)
    if match is not None:
        number = int(match[1])
        window = timedelta(hours=number) if match[2] == "h" else timedelta(days=number)
    if not timedelta(0) < window <= WINDOW_MAX:
        raise InvalidRequest(
            f"The completion_window {completion_window[:64]!r} is not understood; write hours or days up to 30 days, "
            "like '24h' or '7d'.",
            param="completion_window",
        )
    return window


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    if len(metadata) > METADATA_PAIRS_MAX:
        raise InvalidRequest(f"metadata has {len(metadata)} pairs; {METADATA_PAIRS_MAX} are allowed.", param="metadata")
    for key, value in metadata.items():
        if not isinstance(key, str) or not 1 <= len(key) <= METADATA_KEY_MAX:
            raise InvalidRequest(
                f"The metadata key {str(key)[:METADATA_KEY_MAX]!r} must be text of 1 to {METADATA_KEY_MAX} characters.",
                param="metadata",
            )
        if not isinstance(value, str) or len(value) > METADATA_VALUE_MAX:
            raise InvalidRequest(
                f"metadata.{key} must be text of at most {METADATA_VALUE_MAX} characters.", param=f"metadata.{key}"
            )
    return dict(metadata)


def _check_idempotency_key(key: str) -> None:
    if not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX or not key.isprintable():
        raise InvalidRequest(f"An idempotency key must be 1 to {IDEMPOTENCY_KEY_MAX} printable characters.")


def _same_request(session: Session, tenant_id: str, key: str, wanted: Mapping[str, Any]) -> Batch | None:
    """The batch that this key opened before, if any. Raises Conflict where that was another request."""
    batch = session.scalars(select(Batch).where(Batch.tenant_id == tenant_id, Batch.idempotency_key == key)).first()
    if batch is None:
        return None
    other = [name for name, value in wanted.items() if getattr(batch, name) != value]
    if other:
        names = ", ".join(name.removesuffix("_json") for name in other)
        raise Conflict(
            f"The idempotency key was used for batch {batch.id} with another {names}; use a new key for a new request.",
            batch_id=batch.id,
        )
    return batch


def _open_batch(
    session: Session,
    tenant_id: str,
    window: timedelta,
    idempotency_key: str | None,
    wanted: Mapping[str, Any],
    now: datetime,
) -> Batch:
    """The batch's row and those of its output and error file, which can be read from the start."""
    batch_id = _new_batch_id()
    views = [
        File(
            id=f"file-{secrets.token_hex(12)}",
            tenant_id=tenant_id,
            purpose=OUTPUT_PURPOSE,
            filename=f"{batch_id}_{kind}.jsonl",
            bytes_total=0,
            batch_id=batch_id,
            created_at=now,
        )
        for kind in ("output", "error")
    ]
    batch = Batch(
        id=batch_id,
        tenant_id=tenant_id,
        state=BatchState.VALIDATING,
        output_file_id=views[0].id,
        error_file_id=views[1].id,
        idempotency_key=idempotency_key,
        created_at=now,
        expires_at=now + window,
        **wanted,
    )
    session.add_all([*views, batch])
    session.flush()
    return batch


def _new_batch_id() -> str:
    return f"batch_{secrets.token_hex(12)}"


def _next_lines(batch: Batch, chunks: Iterator[bytes], line_bytes_max: int, lines: int) -> tuple[list[Line], bool]:
    """The next lines from where the batch stands, and whether the file ends with them."""
    begin = batch.bytes_read
    if begin == 0:
        first = next(chunks, b"")
        if first.startswith(BYTE_ORDER_MARK):
            first, begin = first.removeprefix(BYTE_ORDER_MARK), len(BYTE_ORDER_MARK)
        chunks = chain((first,), chunks)
    taken: list[Line] = []
    for line in split_lines(chunks, line_bytes_max, number=batch.lines_read, at=begin):
        taken.append(line)
        if len(taken) >= lines or line.end - begin >= STEP_BYTES:
            return taken, False
    return taken, True


def _move_on(session: Session, batch: Batch, last: Line) -> bool:
    """Note how far the file is read, if nobody else has read on from here."""
    moved = session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.state == batch.state, Batch.bytes_read == batch.bytes_read)
        .values(bytes_read=last.end, lines_read=last.number)
        .returning(Batch.id)
    ).first()
    return moved is not None


def _is_being_read(session: Session, batch: Batch) -> bool:
    return batch.state == BatchState.VALIDATING or is_called_off_unread(session, batch.id)


def _end_of_file(session: Session, batch: Batch, now: datetime) -> bool:
    """Let what was read run, or close a batch that was called off meanwhile. Always True: nothing is left to read."""
    return _begin(session, batch, now) if batch.state == BatchState.VALIDATING else _close(session, batch)


def _refuse_file(session: Session, batch: Batch, errors: Sequence[dict[str, Any]], now: datetime) -> bool:
    """Fail a batch whose file cannot be taken at all. Always True: nothing is left to read."""
    if batch.state != BatchState.VALIDATING:
        return _close(session, batch)  # it was called off, and ends as that
    session.execute(delete(QueryRow).where(QueryRow.batch_id == batch.id))
    return _fail(session, batch, errors, now)


def _close(session: Session, batch: Batch) -> bool:
    size = select(File.bytes_total).where(File.id == batch.input_file_id).scalar_subquery()
    session.execute(update(Batch).where(Batch.id == batch.id).values(bytes_read=size))
    return True


def _count(session: Session, batch: Batch) -> int:
    return session.scalar(select(func.count()).select_from(QueryRow).where(QueryRow.batch_id == batch.id)) or 0


def _begin(session: Session, batch: Batch, now: datetime) -> bool:
    """Let the batch's queries run, or fail it where there are none to run."""
    good = select(QueryRow.id).where(QueryRow.batch_id == batch.id, QueryRow.state == QueryState.QUEUED).limit(1)
    if session.scalar(good) is None:
        return _fail(session, batch, _reasons(session, batch), now)
    session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.state == BatchState.VALIDATING)
        .values(state=BatchState.IN_PROGRESS, in_progress_at=now)
    )
    return True


def _reasons(session: Session, batch: Batch) -> list[dict[str, Any]]:
    """Why no line of the file can run: the first lines' errors, and what they say together."""
    total = _count(session, batch)
    if not total:
        return [_file_error("empty_file", "The file has no lines; write one request per line.")]
    bad = select(QueryRow.error_json).where(QueryRow.batch_id == batch.id).order_by(QueryRow.line).limit(REASONS_MAX)
    errors = [json.loads(error_json or "{}") for error_json in session.scalars(bad)]
    listed = [{name: error.get(name) for name in ("code", "message", "param", "line")} for error in errors]
    if all(error["code"] in {"invalid_json", "invalid_line"} for error in listed):
        listed.insert(
            0, _file_error("not_jsonl", "The file is not JSONL: no line of it is an object {...} of its own.")
        )
    if total > REASONS_MAX:
        more = f"{total - REASONS_MAX} more lines have errors; the error file {batch.error_file_id} lists all of them."
        listed.append(_file_error("more_errors", more))
    return listed


def _too_many(full: QueueFull, batch: Batch) -> str:
    return (
        f"With the lines of {batch.id} more than {full.attributes['queued_max']} of your queries would wait, which is "
        "the most that may; send it again when others have ended, in smaller batches, or ask for more."
    )


def _file_error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": None}


def _fail(session: Session, batch: Batch, errors: Sequence[dict[str, Any]], now: datetime) -> bool:
    """End a batch of which nothing can run. Always True: nothing is left to read."""
    session.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.state == BatchState.VALIDATING)
        .values(
            state=BatchState.FAILED,
            failed_at=now,
            errors_json=json.dumps({"object": "list", "data": list(errors)}),
        )
    )
    start_file_clock(session, batch, now)
    return True
