"""How the database is opened: one engine per process, transactions that begin as writers on SQLite, writers in turn."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sqlalchemy import URL, Engine, create_engine, event, func, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, sessionmaker

BUSY_TIMEOUT_S = 30.0
"""How long a SQLite writer waits for another; longer than any transaction of ours takes."""

IDLE_S = 30.0
"""How long a PostgreSQL transaction may rest between two statements; then the server ends it. A process that is frozen
in mid-transaction would keep its locks, and everybody else waiting, for as long as it lives. Ours rest for a second at
most while they compute, but for those that read long files."""

IDLE_SETTING = "idle_in_transaction_session_timeout"

TURN_S = 0.001
"""How often a SQLite writer looks whether it is its turn: SQLite's own wait grows to a tenth of a second, so that
whoever has waited longest asks least often and is overtaken again and again."""


def open_database(url: str) -> Engine:
    """An engine with this product's habits for SQLite (WAL, foreign keys, writers queue) or PostgreSQL."""
    if not url.startswith("sqlite"):
        engine = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
        event.listen(engine, "connect", _prepare_postgresql)
        return engine
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    turnstile = Turnstile(beside(engine.url, "turnstile"))
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", turnstile.begin)
    return engine


def sessions(engine: Engine) -> sessionmaker[Session]:
    """The factory of sessions; whoever opens one owns its transaction."""
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def reading(factory: sessionmaker[Session]) -> Iterator[Session]:
    """A session that only reads: on SQLite it neither waits for a writer nor makes one wait. A write in it fails."""
    with factory() as session:
        session.connection(execution_options={"read_only": True, "postgresql_readonly": True})
        yield session


@contextmanager
def looking(factory: sessionmaker[Session]) -> Iterator[Session]:
    """A session that only reads, and only by index.

    Every question of a tick has an index that answers it in a few steps, however long the queue. PostgreSQL would
    sometimes rather begin to read the table, or sort all that waits, because it takes rows for evenly spread.
    """
    with reading(factory) as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(select(*(func.set_config(name, "off", True) for name in ("enable_seqscan", "enable_sort"))))
        yield session


@contextmanager
def snapshot(factory: sessionmaker[Session]) -> Iterator[Session]:
    """A session that only reads, and all of whose statements see the database as it was at the first."""
    with factory() as session:
        options: dict[str, Any] = {"read_only": True}
        if session.get_bind().dialect.name == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        session.connection(execution_options=options)
        yield session


def rest_long(session: Session) -> None:
    """Let this transaction rest between its statements as long as it needs: it only reads, so nobody waits for it."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.set_config(IDLE_SETTING, "0", True)))


def beside(url: URL, suffix: str) -> Path | None:
    """A path next to a SQLite database's file; None where it is in memory."""
    name = url.database
    return Path(f"{name}.{suffix}") if name and name != ":memory:" else None


class Turnstile:
    """Lets one writer at a time ask SQLite for its write lock; the others wait before it.

    A writer that has just committed finds the next one at the lock already and cannot overtake it, so that nobody
    starves. The turnstile is for fairness only: SQLite's lock is what keeps writers apart, and a process that is
    stopped in its tracks here holds up nobody for long.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def begin(self, connection: Connection) -> None:
        """Begin a transaction: as a reader where its options say so, else as a writer when its turn comes."""
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        if connection.get_execution_options().get("read_only", False):
            raw.execute("PRAGMA query_only=ON")  # a reader that turns writer fails at once when another wrote meanwhile
            raw.execute("BEGIN")
            return
        raw.execute("PRAGMA query_only=OFF")
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        with self._turn(deadline - BUSY_TIMEOUT_S / 2):
            if not _begin_immediate(raw, deadline):
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # once more, to fail with the error of SQLAlchemy's

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        if self._path is None:
            yield
            return
        with self._path.open("a") as file:
            _until(deadline, lambda: _tries_to_lock(file))
            yield


def _prepare_postgresql(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET {IDLE_SETTING} = {int(IDLE_S * 1000)}")
    connection.commit()


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the BEGIN above, not the driver's late one
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut: it may say that money was spent
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_immediate(connection: sqlite3.Connection, deadline: float) -> bool:
    """Take the write lock as soon as it is free; whether that was possible before the deadline."""
    connection.execute("PRAGMA busy_timeout=0")
    try:
        return _until(deadline, lambda: _tries_to_begin(connection))
    except sqlite3.OperationalError:
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")


def _tries_to_begin(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _tries_to_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _until(deadline: float, tries: Callable[[], bool]) -> bool:
    while not tries():
        if time.monotonic() >= deadline:
            return False
        time.sleep(TURN_S)
    return True
