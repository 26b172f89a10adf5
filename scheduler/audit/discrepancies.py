"""What a check finds: a figure that is kept, and the one its parts add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

AT_ONCE = 500
"""Rows fetched at a time, should everything be wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """One figure that does not add up, and where it is kept."""

    table: str
    id: str
    what: str
    expected: int
    found: int

    def __str__(self) -> str:
        return f"{self.table} {self.id}: {self.what} is {self.found}, but its parts add up to {self.expected}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure as it is kept, and as it is recomputed; neither may be NULL."""

    what: str
    found: Any
    expected: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """Figures of a table's rows; `rows` selects from and joins whatever the figures are made of."""

    table: str
    id: Any
    figures: Sequence[Figure]
    rows: Select[Any]

    @cached_property
    def wrong(self) -> Select[Any]:
        """The rows with a figure that differs: the database compares, so that only what is wrong leaves it."""
        columns = [column for figure in self.figures for column in (figure.found, figure.expected)]
        named = [column.label(f"figure_{number}") for number, column in enumerate(columns)]
        every = self.rows.with_only_columns(self.id.label("row_id"), *named, maintain_column_froms=True).subquery()
        figures = [every.c[f"figure_{number}"] for number in range(len(columns))]
        differ = or_(*(found != expected for found, expected in zip(figures[::2], figures[1::2], strict=True)))
        return select(every).where(differ)


def compared(session: Session, check: Check) -> Iterator[Discrepancy]:
    """The figures of the check's rows that differ."""
    for row_id, *values in session.execute(check.wrong, execution_options={"yield_per": AT_ONCE}):
        for figure, found, expected in zip(check.figures, values[::2], values[1::2], strict=True):
            if found != expected:
                yield Discrepancy(
                    table=check.table, id=str(row_id), what=figure.what, expected=int(expected), found=int(found)
                )
