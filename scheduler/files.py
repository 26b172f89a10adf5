"""Uploaded files, kept in the database in pieces, so that every process on every host can read them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Batch, File, FileChunk
from scheduler.errors import Conflict, InvalidRequest, NotFound, TooLarge
from scheduler.finalization import output_chunks
from scheduler.states import BatchState
from scheduler.unread import IS_CALLED_OFF_UNREAD

PURPOSE = "batch"
OUTPUT_PURPOSE = "batch_output"
PIECE_BYTES = 1024 * 1024
"""Large enough that a 200 MB file is 200 rows, small enough to hold one in memory per reader."""
FILENAME_MAX = 255
LIST_MAX = 10_000
EXPIRES_AFTER_MIN_S, EXPIRES_AFTER_MAX_S = 3_600, 2_592_000
"""OpenAI's bounds for files that expire: an hour and thirty days."""
EXPIRED_AT_ONCE = 20
"""Files forgotten in one transaction: each may be 200 MB of rows."""

_IS_READ_IN = or_(Batch.state == BatchState.VALIDATING, IS_CALLED_OFF_UNREAD)


def store_upload(
    session: Session,
    tenant_id: str,
    filename: str,
    purpose: str,
    chunks: Iterable[bytes],
    *,
    bytes_max: int,
    now: datetime,
    expires_after_s: int | None = None,
) -> File:
    """Keep an upload, however it is cut into chunks, a piece at a time; where it expires, until then.

    Raises:
        InvalidRequest: the purpose is not `batch`.
        TooLarge: there are more than `bytes_max` bytes; what was written is the caller's to roll back.
    """
    if purpose != PURPOSE:
        raise InvalidRequest(f"The purpose {purpose[:64]!r} is not supported; send purpose 'batch'.", param="purpose")
    file = File(
        id=f"file-{secrets.token_hex(12)}",
        tenant_id=tenant_id,
        purpose=purpose,
        filename=_printable(filename),
        bytes_total=0,
        created_at=now,
        expires_at=now + timedelta(seconds=expires_after_s) if expires_after_s is not None else None,
    )
    session.add(file)
    session.flush()
    for position, piece in enumerate(_pieces(chunks)):
        file.bytes_total += len(piece)
        if file.bytes_total > bytes_max:
            raise TooLarge(f"The file is larger than {bytes_max} bytes; split it into several batches.")
        session.execute(insert(FileChunk), {"file_id": file.id, "position": position, "content": piece})
    session.flush()
    return file


def read_chunks(session: Session, file_id: str, from_byte: int = 0) -> Iterator[bytes]:
    """An uploaded file's bytes from one on, a piece at a time."""
    position, skip = divmod(from_byte, PIECE_BYTES)
    statement = select(FileChunk.content).where(FileChunk.file_id == file_id)
    while (piece := session.scalar(statement.where(FileChunk.position == position))) is not None:
        if len(piece) > skip:
            yield piece[skip:] if skip else piece
        skip = 0
        position += 1


def find_file(session: Session, tenant_id: str | None, file_id: str) -> File:
    """A file that this tenant may see (any, for an admin's None). Raises NotFound, also for another tenant's."""
    file = session.get(File, file_id)
    if file is None or file.deleted_at is not None or tenant_id not in {None, file.tenant_id}:
        raise NotFound(f"There is no file '{file_id[:64]}'.", param="file_id")
    return file


def list_files(
    session: Session,
    tenant_id: str | None,
    *,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = LIST_MAX,
    order: str = "desc",
) -> tuple[Sequence[File], bool]:
    """A page of files, newest first unless `order` is asc, and whether there are more. Raises InvalidRequest."""
    if order not in {"asc", "desc"}:
        raise InvalidRequest(f"order {order[:64]!r} is neither 'asc' nor 'desc'.", param="order")
    if not 1 <= limit <= LIST_MAX:
        raise InvalidRequest(f"limit {limit} is not within 1 and {LIST_MAX}.", param="limit")
    statement = select(File).where(File.deleted_at.is_(None))
    if tenant_id is not None:
        statement = statement.where(File.tenant_id == tenant_id)
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    if after is not None:
        last = find_file(session, tenant_id, after)
        later = File.created_at > last.created_at if order == "asc" else File.created_at < last.created_at
        next_id = File.id > last.id if order == "asc" else File.id < last.id
        statement = statement.where(or_(later, and_(File.created_at == last.created_at, next_id)))
    if order == "asc":
        statement = statement.order_by(File.created_at, File.id)
    else:
        statement = statement.order_by(File.created_at.desc(), File.id.desc())
    files = session.scalars(statement.limit(limit + 1)).all()
    return files[:limit], len(files) > limit


def delete_file(session: Session, tenant_id: str | None, file_id: str, now: datetime) -> None:
    """Forget a file's bytes. Raises NotFound, or Conflict while a batch is still being read from it."""
    file = find_file(session, tenant_id, file_id)
    reading = session.scalar(select(Batch.id).where(Batch.input_file_id == file_id, _IS_READ_IN).limit(1))
    if reading is not None:
        raise Conflict(f"Batch {reading} is still being read from file {file_id}; delete it when validation is over.")
    _forget(session, file.id, now)


def expired(session: Session, now: datetime) -> Sequence[str]:
    """Files whose time is up, but for those that a batch is still being read from."""
    is_needed = select(Batch.id).where(Batch.input_file_id == File.id, _IS_READ_IN).correlate(File).exists()
    return session.scalars(
        select(File.id)
        .where(File.expires_at <= now, File.deleted_at.is_(None), ~is_needed)
        .order_by(File.expires_at)
        .limit(EXPIRED_AT_ONCE)
    ).all()


def delete_expired(session: Session, now: datetime) -> int:
    """Forget the files whose time is up; returns how many there were."""
    file_ids = expired(session, now)
    for file_id in file_ids:
        _forget(session, file_id, now)
    return len(file_ids)


def _forget(session: Session, file_id: str, now: datetime) -> None:
    session.execute(delete(FileChunk).where(FileChunk.file_id == file_id))
    session.execute(update(File).where(File.id == file_id, File.deleted_at.is_(None)).values(deleted_at=now))


def file_content(session: Session, file: File) -> Iterator[bytes]:
    """A file's bytes as they are now, whether it was uploaded or is a batch's output or error file."""
    if file.batch_id is None:
        return read_chunks(session, file.id)
    batch = session.get_one(Batch, file.batch_id)
    return output_chunks(session, batch, "output" if batch.output_file_id == file.id else "error")


def file_object(session: Session, file: File, *, counted: bool = True) -> dict[str, Any]:
    """The file in OpenAI's shape.

    Output and error files grow, and what they hold now is counted by reading them; not `counted`, they show 0 bytes,
    as a list of many files had better.
    """
    bytes_total = file.bytes_total
    if counted and file.batch_id is not None:
        bytes_total = sum(len(chunk) for chunk in file_content(session, file))
    return {
        "id": file.id,
        "object": "file",
        "bytes": bytes_total,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at is not None else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size, so that a byte's place tells its piece."""
    buffer = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            taken = view[: PIECE_BYTES - len(buffer)]
            buffer += taken
            view = view[len(taken) :]
            if len(buffer) == PIECE_BYTES:
                yield bytes(buffer)
                buffer.clear()
    if buffer:
        yield bytes(buffer)


def _printable(filename: str) -> str:
    """A name to show, never to open."""
    return "".join(c for c in filename if c.isprintable())[:FILENAME_MAX] or "upload.jsonl"
