"""What people are told: each alert once per subject and period, written in the transaction that caused it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from models.tables import Alert, Delivery, WebhookRow
from scheduler.errors import NotFound
from scheduler.states import DeliveryState
from scheduler.types import AlertKind

MESSAGE_MAX = 1000
"""Characters of an alert's sentence: some quote a server's words, which may be long."""

AT_ONCE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """An alert, and how far it has got to each webhook."""

    alert: Alert
    deliveries: tuple[Delivery, ...]


def raise_alert(
    session: Session,
    kind: AlertKind,
    subject: str,
    *,
    message: str,
    now: datetime,
    period: str | None = None,
    tenant_id: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> bool:
    """Tell people that something is so; returns whether this is news.

    One kind is told of one subject once per period (the UTC day where none is named), however often it is raised. It
    is written with the caller's transaction; the daemon takes it from there to its log and the webhooks.
    """
    period = period or f"{now.astimezone(UTC):%Y-%m-%d}"
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    alert_id = session.scalar(
        dialect.insert(Alert)
        .values(
            id=f"alert_{secrets.token_hex(12)}",
            key=f"{kind}:{subject}:{period}",
            kind=kind,
            subject=subject,
            tenant_id=tenant_id,
            message=message[:MESSAGE_MAX].replace("\x00", "\ufffd"),
            details_json=json.dumps(dict(details or {})),
            created_at=now,
        )
        .on_conflict_do_nothing(index_elements=[Alert.key])
        .returning(Alert.id)
    )
    if alert_id is None:
        return False
    webhooks = session.execute(select(WebhookRow.id, WebhookRow.kinds).where(WebhookRow.removed_at.is_(None)))
    deliveries = [
        {"alert_id": alert_id, "webhook_id": row.id, "state": DeliveryState.PENDING, "next_try_at": now}
        for row in webhooks
        if row.kinds is None or kind in row.kinds.split()
    ]
    if deliveries:
        session.execute(insert(Delivery), deliveries)
    return True


def unannounced(session: Session) -> Sequence[Alert]:
    """Alerts that no log has told of yet, oldest first."""
    return session.scalars(
        select(Alert).where(Alert.announced_at.is_(None)).order_by(Alert.created_at, Alert.id).limit(AT_ONCE)
    ).all()


def mark_announced(session: Session, alert_ids: Sequence[str], now: datetime) -> None:
    """Remember that the log has told of them."""
    session.execute(update(Alert).where(Alert.id.in_(alert_ids), Alert.announced_at.is_(None)).values(announced_at=now))


def list_alerts(
    session: Session,
    *,
    tenant_id: str | None = None,
    kind: AlertKind | None = None,
    after: str | None = None,
    limit: int = AT_ONCE,
) -> tuple[list[Told], bool]:
    """Alerts, newest first, and whether there are more. Raises NotFound where `after` is none that may be seen."""
    statement = select(Alert).order_by(Alert.created_at.desc(), Alert.id.desc()).limit(limit + 1)
    if tenant_id is not None:
        statement = statement.where(Alert.tenant_id == tenant_id)
    if kind is not None:
        statement = statement.where(Alert.kind == kind)
    if after is not None:
        last = session.get(Alert, after)
        if last is None or (tenant_id is not None and last.tenant_id != tenant_id):
            raise NotFound(f"There is no alert '{after}'.", param="after")
        older = and_(Alert.created_at == last.created_at, Alert.id < last.id)
        statement = statement.where(or_(Alert.created_at < last.created_at, older))
    found = session.scalars(statement).all()
    deliveries: dict[str, tuple[Delivery, ...]] = {}
    wanted = select(Delivery).where(Delivery.alert_id.in_([alert.id for alert in found])).order_by(Delivery.id)
    for delivery in session.scalars(wanted):
        deliveries[delivery.alert_id] = (*deliveries.get(delivery.alert_id, ()), delivery)
    told = [Told(alert=alert, deliveries=deliveries.get(alert.id, ())) for alert in found[:limit]]
    return told, len(found) > limit
