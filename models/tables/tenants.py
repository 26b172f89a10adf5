"""Who spends: tenants, their keys, and the caps on what they may spend."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Purse, RowId, Table, purse_checks


class Tenant(Purse, Table):
    """A tenant. Its purse has no limit of its own: it is the row every write of its money locks first."""

    __tablename__ = "tenants"
    __table_args__ = (*purse_checks(), UniqueConstraint("name"))

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    timezone: Mapped[str] = mapped_column(default="UTC")
    weight: Mapped[float] = mapped_column(default=1.0)
    """Its share in the weighted deficit round robin."""
    queued_max: Mapped[int | None] = mapped_column(default=None)
    running_max: Mapped[int | None] = mapped_column(default=None)
    requests_per_minute: Mapped[int | None] = mapped_column(default=None)
    disabled_at: Mapped[datetime | None] = mapped_column(default=None)
    created_at: Mapped[datetime]


class ApiKey(Table):
    """A credential, stored as its SHA-256 and shown once. Without a tenant it is an admin's."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("digest"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    digest: Mapped[str]
    """Hex SHA-256 of the whole key: keys carry 256 bits of chance, so no slow hash is needed."""
    prefix: Mapped[str]
    """The first characters, to tell keys apart in lists."""
    scopes: Mapped[str]
    """Space-separated: submit, read, admin."""
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None] = mapped_column(default=None)


class Cap(Table):
    """A limit on what a tenant may spend per period, on all models or on one."""

    __tablename__ = "caps"
    __table_args__ = (
        CheckConstraint("limit_nanousd > 0", name="limit_is_positive"),
        CheckConstraint("period IN ('day', 'week', 'month', 'total')", name="period_is_known"),
        Index("ix_caps_tenant_id_live", "tenant_id", "removed_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    model: Mapped[str | None] = mapped_column(default=None)
    period: Mapped[str]
    limit_nanousd: Mapped[int]
    soft_fraction: Mapped[float | None] = mapped_column(default=None)
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None] = mapped_column(default=None)


class CapPeriod(Table):
    """One period of one cap: what was spent and is held in it. A new period is a new row, so nothing is ever reset."""

    __tablename__ = "cap_periods"
    __table_args__ = (
        UniqueConstraint("cap_id", "starts_at"),
        CheckConstraint("held_nanousd >= 0", name="held_is_not_negative"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    cap_id: Mapped[str] = mapped_column(ForeignKey("caps.id", ondelete="CASCADE"))
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime | None] = mapped_column(default=None)
    held_nanousd: Mapped[int] = mapped_column(default=0)
    spent_nanousd: Mapped[int] = mapped_column(default=0)
    soft_alerted_at: Mapped[datetime | None] = mapped_column(default=None)
    first_refused_at: Mapped[datetime | None] = mapped_column(default=None)
    unspent_at_refusal_nanousd: Mapped[int | None] = mapped_column(default=None)
    """The part of the cap neither spent nor held when a query was first refused: the phantom-block figure."""
    held_at_refusal_nanousd: Mapped[int | None] = mapped_column(default=None)
    """What waves in flight held at that moment: their unused part comes back, and what was refused goes on with it."""


class Pace(Table):
    """The shadow price of one budget in one period, so that a restarted daemon goes on at the same one."""

    __tablename__ = "paces"

    scope: Mapped[str] = mapped_column(primary_key=True)
    """The cap's id, or that of a batch with a limit of its own."""
    starts_at: Mapped[datetime] = mapped_column(primary_key=True)
    """When the period began."""
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    price: Mapped[float]
    """Expected right answers that one nano-dollar must buy."""
    windows: Mapped[int]
    """How many windows have moved it."""
    updated_at: Mapped[datetime]
