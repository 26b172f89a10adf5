"""How a database gets to a schema revision: all of it or nothing, and one process at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.schema import CreateIndex

from models.tables import Table

HEAD = "head"
LOCK_KEY = 0x616C6C6F74646D  # "allotdm", a key of its own: a running daemon holds "allotd" for as long as it leads
SQLITE_WAIT_S = 120.0
"""How long one upgrade of a SQLite file waits for another; on PostgreSQL it waits as long as it takes."""

OPTIONS: dict[str, Any] = {"render_as_batch": True}
"""SQLite cannot alter a table in place; Alembic's batch mode rebuilds it there and alters it elsewhere."""


def upgrade(url: str, revision: str = HEAD) -> None:
    """Bring the database to `revision`; do nothing if it is there already."""
    with connected(url) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the database back to `revision`; "base" removes every table."""
    with connected(url) as connection:
        command.downgrade(_config(connection), revision)
        if _revision(connection) is None:
            connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))


def check(url: str) -> list[str]:
    """Every way in which the database differs from the tables this version expects; none when it is up to date."""
    with connected(url) as connection:
        found, wanted = _revision(connection), newest()
        if found != wanted:
            return [f"the database is at revision {found or 'none'}, this version of allotd needs {wanted}"]
        return [_difference(item) for item in _differences(connection)]


def current(url: str) -> str | None:
    """The revision the database is at; None before the first upgrade."""
    with connected(url) as connection:
        return _revision(connection)


def newest() -> str:
    """The newest revision this version of allotd knows."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None, "the package holds no migrations"
    return head


def knows(revision: str) -> bool:
    """Whether this version of allotd has the revision; a newer version's it has not."""
    return revision in {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    """A connection in one transaction that no other migration shares; committed at the end, or rolled back."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=_connect_args(url))
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _lock_sqlite)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_KEY)))
        yield connection


def _config(connection: sa.Connection | None) -> Config:
    return Config(Path(__file__).with_name("alembic.ini"), attributes={"connection": connection})


def _connect_args(url: str) -> dict[str, Any]:
    return {"timeout": SQLITE_WAIT_S} if url.startswith("sqlite") else {}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's BEGIN below; the driver's own would leave DDL outside of it
    # Rebuilding a table drops the old one. With foreign keys on, that would delete every row that points to it.
    connection.execute("PRAGMA foreign_keys=OFF")


def _lock_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _differences(connection: sa.Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={**OPTIONS, "target_metadata": Table.metadata})
    found = list(compare_metadata(context, Table.metadata))
    if connection.dialect.name != "sqlite":
        return found
    wanted = {index.name: index for table in Table.metadata.tables.values() for index in table.indexes}
    same = {name for name, index in wanted.items() if _is_as_written(connection, index)}
    return [item for item in found if not (item[0] in {"add_index", "remove_index"} and item[1].name in same)]


def _is_as_written(connection: sa.Connection, index: sa.Index) -> bool:
    """Whether SQLite holds just this index. SQLAlchemy reads no DESC there, so Alembic would see another one."""
    wanted = str(CreateIndex(index).compile(dialect=connection.dialect))
    query = sa.text("SELECT sql FROM sqlite_master WHERE type = 'index' AND name = :name")
    written = connection.scalar(query, {"name": index.name})
    return written is not None and written.split() == wanted.split()


def _difference(item: Any) -> str:
    """One difference as Alembic tells it: a tuple (kind, object, ...), or a list of changes of one column."""
    if isinstance(item, list):
        return "; ".join(_difference(change) for change in item)
    kind, *rest = item
    parts = [str(part) for part in rest if part is not None and not isinstance(part, dict)]
    return f"{str(kind).replace('_', ' ')}: {', '.join(parts)}"
