"""Many rows with one statement, without what SQLAlchemy does for each value of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Table, insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.schema import ScalarElementColumnDefault

Adapt = Callable[[Any], Any]


def insert_rows(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns; what they leave out gets its column's default."""
    if not rows:
        return
    connection = session.connection()
    statement, defaults, adapters = _prepared(table, connection.dialect, tuple(rows[0]))
    adapted: dict[tuple[str, Any], Any] = {}  # most values that need it are the same instant
    ready = []
    for row in rows:
        values = {**defaults, **row}
        for name, adapt in adapters:
            key = (name, values[name])
            if key not in adapted:
                adapted[key] = adapt(values[name])
            values[name] = adapted[key]
        ready.append(values)
    connection.exec_driver_sql(statement, ready)


@lru_cache(maxsize=16)  # a dialect is its engine's own, and engines come and go
def _prepared(
    table: Table, dialect: Dialect, given: tuple[str, ...]
) -> tuple[str, dict[str, Any], list[tuple[str, Adapt]]]:
    """The statement with named parameters, the defaults of columns not given, and how values become the driver's."""
    defaults = {
        column.name: column.default.arg
        for column in table.columns
        if column.name not in given and isinstance(column.default, ScalarElementColumnDefault)
    }
    names = [*given, *defaults]
    kind: Callable[..., Dialect] = type(dialect)
    named = kind(paramstyle="named" if dialect.name == "sqlite" else "pyformat")
    processors = ((name, table.columns[name].type.dialect_impl(dialect).bind_processor(dialect)) for name in names)
    adapters: list[tuple[str, Adapt]] = [(name, adapt) for name, adapt in processors if adapt is not None]
    return str(insert(table).inline().compile(dialect=named, column_keys=names)), defaults, adapters
