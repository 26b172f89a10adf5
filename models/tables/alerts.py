"""What people are told: alerts, the webhooks that carry them, and how far each has got."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import RowId, Table


class Alert(Table):
    """Something an operator should know. Written in the transaction that caused it; `key` makes it one per period."""

    __tablename__ = "alerts"
    __table_args__ = (
        UniqueConstraint("key"),
        Index("ix_alerts_created_at", "created_at", "id"),
        Index("ix_alerts_kind", "kind"),
        Index("ix_alerts_announced_at", "announced_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """Also the `webhook-id` of every delivery, by which a receiver knows that it has seen it."""
    key: Mapped[str]
    kind: Mapped[str]
    subject: Mapped[str]
    """The id of what it is about: a cap, a worker, a predictor."""
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    message: Mapped[str] = mapped_column(Text)
    details_json: Mapped[str] = mapped_column(Text, default="{}")
    created_at: Mapped[datetime]
    announced_at: Mapped[datetime | None] = mapped_column(default=None)
    """When the daemon wrote it into its log."""


class WebhookRow(Table):
    """An address that alerts are posted to. The secret signs what is sent, so it is kept as it is, and shown once."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    secret: Mapped[str]
    kinds: Mapped[str | None] = mapped_column(default=None)
    """Space-separated kinds of alerts; all where it is NULL."""
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None] = mapped_column(default=None)


class Delivery(Table):
    """One alert on its way to one webhook, until it arrived or was given up."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("alert_id", "webhook_id"),
        CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state_is_known"),
        Index("ix_deliveries_state_next_try_at", "state", "next_try_at"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    alert_id: Mapped[str] = mapped_column(ForeignKey("alerts.id", ondelete="CASCADE"))
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    state: Mapped[str]
    tries: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime]
    last_problem: Mapped[str | None] = mapped_column(Text, default=None)
    delivered_at: Mapped[datetime | None] = mapped_column(default=None)
