"""What things cost and what was paid: price versions, the ledger's entries, which are never edited, and its audits."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import RowId, Table


class PriceRow(Table):
    """What a model's tokens cost from an instant on, in nano-dollars per token."""

    __tablename__ = "prices"
    __table_args__ = (
        CheckConstraint(
            "prompt_nanousd >= 0 AND cached_nanousd >= 0 AND completion_nanousd >= 0", name="prices_are_not_negative"
        ),
        Index("ix_prices_model_effective_at", "model", "effective_at"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    model: Mapped[str]
    effective_at: Mapped[datetime]
    prompt_nanousd: Mapped[int]
    cached_nanousd: Mapped[int]
    completion_nanousd: Mapped[int]
    created_at: Mapped[datetime]
    ends_at: Mapped[datetime | None] = mapped_column(default=None)
    """Where a correction of the past ends; every other price holds until a newer one begins."""


class Correction(Table):
    """A mistaken price put right: what a model's tokens cost, after all, from one instant to another.

    Waves of that time that were closed before have an `adjust` entry each; those closed later are settled at its price.
    """

    __tablename__ = "corrections"
    __table_args__ = (Index("ix_corrections_model", "model"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    model: Mapped[str]
    price_id: Mapped[int] = mapped_column(ForeignKey("prices.id"))
    from_at: Mapped[datetime]
    to_at: Mapped[datetime | None] = mapped_column(default=None)
    """The first instant after it; open where the price has held ever since."""
    created_at: Mapped[datetime]


class Audit(Table):
    """One look through the books, and what did not add up."""

    __tablename__ = "audits"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    began_at: Mapped[datetime]
    """The instant of the ledger that was looked at."""
    finished_at: Mapped[datetime]
    entries: Mapped[int]
    discrepancies: Mapped[int]
    first: Mapped[str | None] = mapped_column(Text, default=None)
    """The first discrepancy, in words."""


class Entry(Table):
    """One movement of money. `key` makes writing it twice impossible; balances are sums of the two deltas."""

    __tablename__ = "entries"
    __table_args__ = (
        UniqueConstraint("key"),
        CheckConstraint("kind IN ('reserve', 'settle', 'release', 'expire', 'adjust')", name="kind_is_known"),
        Index("ix_entries_tenant_id_effective_at", "tenant_id", "effective_at"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    key: Mapped[str]
    kind: Mapped[str]
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), index=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("queries.id"))
    wave_id: Mapped[int | None] = mapped_column(ForeignKey("waves.id"), index=True)
    model: Mapped[str]
    price_id: Mapped[int] = mapped_column(ForeignKey("prices.id"))
    held_delta_nanousd: Mapped[int] = mapped_column(default=0)
    spent_delta_nanousd: Mapped[int] = mapped_column(default=0)
    effective_at: Mapped[datetime]
    """The instant whose period the money counts to: that of the reservation."""
    created_at: Mapped[datetime]
    note: Mapped[str | None] = mapped_column(default=None)
