"""How many rows are read or written by one statement, whose text never changes.

A statement per row costs PostgreSQL's clients more than the rows do, and so does a text that grows with their number,
which nobody can keep prepared. So rows go to PostgreSQL as one array per column. SQLite is in this process and has no
arrays: it runs the same statement once per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    CursorResult,
    Insert,
    Select,
    String,
    TableClause,
    Update,
    any_,
    bindparam,
    column,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from models.tables import Table
from scheduler.errors import SchedulerError

NUMBER, TEXT = BigInteger(), String()

Row = Mapping[str, Any]
Values = Mapping[str, ColumnElement[Any]]
"""What stands for a row's values where a statement is built."""


class Changes:
    """A conditional UPDATE of many rows, each named by its own values; a row may be named once."""

    def __init__(self, build: Callable[[Values], Update], **types: TypeEngine[Any]) -> None:
        self.names = tuple(types)
        self.each = build({name: bindparam(name, type_=kind) for name, kind in types.items()})
        self._build, self._types = build, types

    def of_arrays(self, prefix: str) -> Any:
        """The UPDATE of all rows, to be a part of a statement; its parameters' names begin with the prefix."""
        return self._build(_arrays(self._types, prefix)).returning(literal_column("1").label("one")).cte(prefix)


class Transfer:
    """Changes of several tables that belong together: one statement on PostgreSQL."""

    def __init__(self, **changes: Changes) -> None:
        self._changes = changes
        parts = {name: change.of_arrays(name) for name, change in changes.items()}
        counts = (select(func.count()).select_from(part).scalar_subquery() for part in parts.values())
        self._all: Select[Any] = select(*counts)

    def make(self, session: Session, **rows: Sequence[Row]) -> None:
        """Make the changes of these rows; every one must be as its statement expects it.

        The tenant's lock makes that so. Where it is not, the transaction is undone rather than the books bent.
        """
        expected = [len(rows[name]) for name in self._changes]
        changed = self._at_once(session, rows) if _takes_arrays(session) else self._one_by_one(session, rows)
        if changed != expected:
            raise SchedulerError(f"{sum(expected) - sum(changed)} rows were not as the ledger expected them.")

    def _at_once(self, session: Session, rows: Mapping[str, Sequence[Row]]) -> list[int]:
        parameters = {
            f"{name}_{key}": [row[key] for row in rows[name]]
            for name, change in self._changes.items()
            for key in change.names
        }
        return list(session.connection().execute(self._all, parameters).one())

    def _one_by_one(self, session: Session, rows: Mapping[str, Sequence[Row]]) -> list[int]:
        changed = []
        for name, change in self._changes.items():
            result = session.connection().execute(change.each, list(rows[name])) if rows[name] else None
            assert result is None or isinstance(result, CursorResult)
            changed.append(result.rowcount if result is not None else 0)
        return changed


class Additions:
    """An INSERT of many rows into a table."""

    def __init__(self, table: type[Table], *names: str) -> None:
        into = table.__table__
        assert isinstance(into, TableClause)
        columns = into.c
        source = _arrays({name: columns[name].type for name in names})
        ordered = select(*(source[name] for name in names)).order_by(source[_NUMBER])
        self._id = columns["id"]
        self._each: Insert = insert(into)
        self._all: Insert = insert(into).from_select(list(names), ordered)

    def make(self, session: Session, rows: Sequence[Row]) -> None:
        """Add these rows; one that is there already fails the transaction."""
        if not rows:
            return
        if _takes_arrays(session):
            session.connection().execute(self._all, _by_column(rows))
        else:
            session.connection().execute(self._each, rows)

    def ids(self, session: Session, rows: Sequence[Row]) -> list[int]:
        """Add these rows, and give their ids in the same order."""
        if not rows:
            return []
        if not _takes_arrays(session):
            statement = self._each.returning(self._id, sort_by_parameter_order=True)
            return list(session.connection().scalars(statement, rows))
        # Ids are counted up in the order of the SELECT, but the order in which they are returned is nobody's promise.
        return sorted(session.connection().scalars(self._all.returning(self._id), _by_column(rows)))


class Lookup:
    """A SELECT of the rows that a list of ids names."""

    def __init__(self, build: Callable[[Callable[[Any], ColumnElement[bool]]], Any]) -> None:
        self._each = build(lambda key: key.in_(bindparam("ids", expanding=True)))
        self._all = build(lambda key: key == any_(bindparam("ids", type_=ARRAY(_plain(key.type)))))

    def rows(self, session: Session, ids: Sequence[Any], **parameters: Any) -> Sequence[Any]:
        """The rows of these ids."""
        statement = self._all if _takes_arrays(session) else self._each
        return session.connection().execute(statement, {"ids": list(ids), **parameters}).all()


_NUMBER = "row_number"


def _arrays(types: Mapping[str, TypeEngine[Any]], prefix: str = "") -> dict[str, ColumnElement[Any]]:
    """A set of rows made of one array per column."""
    plain = {name: _plain(kind) for name, kind in types.items()}
    source = (
        func.unnest(
            *(bindparam(f"{prefix}_{name}" if prefix else name, type_=ARRAY(kind)) for name, kind in plain.items())
        )
        .table_valued(*(column(name, kind) for name, kind in plain.items()), with_ordinality=_NUMBER)
        .render_derived()
    )
    return {name: source.c[name] for name in (*plain, _NUMBER)}


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Row ids are of a type of their own on SQLite alone."""
    return NUMBER if isinstance(kind, BigInteger) else kind


def _takes_arrays(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _by_column(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
