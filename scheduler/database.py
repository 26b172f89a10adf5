"""How the database is opened: one engine per process, transactions that begin as writers on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, sessionmaker

BUSY_TIMEOUT_S = 30.0
"""How long a SQLite writer waits for another; longer than any transaction of ours takes."""


def open_database(url: str) -> Engine:
    """An engine with this product's habits for SQLite (WAL, foreign keys, writers queue) or PostgreSQL."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def sessions(engine: Engine) -> sessionmaker[Session]:
    """The factory of sessions; whoever opens one owns its transaction."""
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def reading(factory: sessionmaker[Session]) -> Iterator[Session]:
    """A session that only reads: on SQLite it neither waits for a writer nor makes one wait."""
    with factory() as session:
        session.connection(execution_options={"read_only": True})
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


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's BEGIN below, not the driver's late one
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut: it may say that money was spent
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer fails at once when another wrote in between, and no timeout helps it.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
