"""Which failures of a database pass by themselves, what they are in plain words, and whether a commit was made whose
acknowledgement was lost."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

SQLITE_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""SQLite's result codes that say nothing of the statement: another writer, no room on the disk, no file handle."""

SQLITE_WORDS = {
    sqlite3.SQLITE_BUSY: "The database is busy with another writer.",
    sqlite3.SQLITE_FULL: "The disk of the database is full; make room, and work goes on by itself.",
    sqlite3.SQLITE_IOERR: "The disk of the database cannot be read or written; see to it, and work goes on by itself.",
}
DISK_FULL = "53100"
"""PostgreSQL's code for it."""
ASK_AGAIN_S = 0.05


def is_passing(error: BaseException) -> bool:
    """Whether trying the same again may help: the database was away, full or busy, not asked something wrong."""
    return any(_passes(cause) for cause in _chain(error))


def in_words(error: BaseException) -> str:
    """What an operator should know and do, in a sentence."""
    for cause in _chain(error):
        original: BaseException | None = cause.orig if isinstance(cause, DBAPIError) else None
        if isinstance(original, sqlite3.Error):
            code = _primary(original)
            if code in SQLITE_WORDS:
                return SQLITE_WORDS[code]
        elif getattr(original, "sqlstate", None) == DISK_FULL:
            return SQLITE_WORDS[sqlite3.SQLITE_FULL]
    original = error.orig if isinstance(error, DBAPIError) else error
    return f"The database failed: {str(original).strip() or type(original).__name__}"


def receipt(session: Session) -> int | None:
    """What to ask for after a commit that nobody acknowledged; None where no such thing can happen.

    PostgreSQL remembers for millions of transactions how each ended. SQLite commits in our own process.
    """
    if session.get_bind().dialect.name != "postgresql":
        return None
    session.flush()
    xid: int | None = session.scalar(text("SELECT pg_current_xact_id_if_assigned()::text::bigint"))
    return xid


def was_committed(engine: Engine, xid: int) -> bool:
    """Whether the transaction was committed; waits while it is still on its way. Raises DBAPIError."""
    while True:
        with engine.connect() as connection:
            status = connection.scalar(text("SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8))"), {"xid": xid})
        if status != "in progress":
            return bool(status == "committed")
        time.sleep(ASK_AGAIN_S)


def _passes(error: BaseException) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return _primary(error.orig) in SQLITE_PASSING
    return isinstance(error, OperationalError | InterfaceError)


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: a full disk, say, and then the savepoint that SQLite had dropped because of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
