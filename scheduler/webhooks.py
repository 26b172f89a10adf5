"""The addresses that alerts are posted to, and the secrets that sign what is posted."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import Delivery, WebhookRow
from scheduler.errors import Conflict, NotFound
from scheduler.states import DeliveryState
from scheduler.types import AlertKind

SECRET_BYTES = 32
"""The Standard Webhooks specification asks for 24 to 64."""

WEBHOOKS_MAX = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class NewWebhook:
    """A webhook just made; `secret` is in the Standard Webhooks form and shown this once."""

    row: WebhookRow
    secret: str


def add_webhook(session: Session, url: str, kinds: Iterable[AlertKind], now: datetime) -> NewWebhook:
    """Post alerts of these kinds (all, where none is named) to a URL, which `scheduler.addresses` has checked.

    Raises Conflict where there are too many.
    """
    if len(list_webhooks(session)) >= WEBHOOKS_MAX:
        raise Conflict(f"There are {WEBHOOKS_MAX} webhooks already; remove one with `allotd webhook remove`.")
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"
    row = WebhookRow(
        id=f"webhook_{secrets.token_hex(8)}",
        url=url,
        secret=secret,
        kinds=" ".join(sorted(set(kinds))) or None,
        created_at=now,
    )
    session.add(row)
    session.flush()
    return NewWebhook(row=row, secret=secret)


def list_webhooks(session: Session) -> Sequence[WebhookRow]:
    """The webhooks there are, oldest first."""
    return session.scalars(
        select(WebhookRow).where(WebhookRow.removed_at.is_(None)).order_by(WebhookRow.created_at, WebhookRow.id)
    ).all()


def find_webhook(session: Session, webhook_id: str) -> WebhookRow:
    """A webhook by its id. Raises NotFound."""
    row = session.get(WebhookRow, webhook_id)
    if row is None or row.removed_at is not None:
        raise NotFound(f"There is no webhook '{webhook_id}'; `allotd webhook list` shows those there are.")
    return row


def remove_webhook(session: Session, webhook_id: str, now: datetime) -> None:
    """Post nothing more to a webhook, also what was on its way. Raises NotFound."""
    find_webhook(session, webhook_id)
    session.execute(update(WebhookRow).where(WebhookRow.id == webhook_id).values(removed_at=now))
    session.execute(
        update(Delivery)
        .where(Delivery.webhook_id == webhook_id, Delivery.state == DeliveryState.PENDING)
        .values(state=DeliveryState.DEAD, last_problem="The webhook was removed.")
    )
