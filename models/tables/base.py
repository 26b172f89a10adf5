"""The base of all tables: naming of constraints, kinds of columns shared by SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Dialect, Integer, MetaData, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. Only aware datetimes go in; aware UTC datetimes come out, also of SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        if value is None:
            return None
        assert value.tzinfo is not None, "an instant without a time zone"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


# SQLite counts rows only for a column of the exact type INTEGER.
RowId = BigInteger().with_variant(Integer(), "sqlite")


class Table(DeclarativeBase):
    """A table."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: UtcDateTime, int: BigInteger}  # noqa: RUF012 (SQLAlchemy's own name)


class Purse:
    """Columns of whatever money is limited by: what is spent, what is held for running waves, and the limit.

    Only `scheduler.ledger` writes them. They are the running sum of the ledger's entries; `allotd ledger verify`
    recomputes them.
    """

    limit_nanousd: Mapped[int | None] = mapped_column(default=None)
    held_nanousd: Mapped[int] = mapped_column(default=0)
    spent_nanousd: Mapped[int] = mapped_column(default=0)

    @property
    def left_nanousd(self) -> int | None:
        """What the limit leaves; None without one."""
        if self.limit_nanousd is None:
            return None
        return self.limit_nanousd - self.held_nanousd - self.spent_nanousd


def purse_checks() -> tuple[Any, ...]:
    """No purse ever holds less than nothing."""
    return (CheckConstraint("held_nanousd >= 0", name="held_is_not_negative"),)
