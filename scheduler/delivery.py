"""How alerts get to webhooks: signed, once at least, tried again later and later, and given up visibly."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import structlog
from sqlalchemy import and_, select, update
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from models.tables import Alert, Delivery, WebhookRow
from scheduler.addresses import Target, resolve
from scheduler.errors import SchedulerError
from scheduler.settings import Settings
from scheduler.states import DeliveryState

AT_ONCE = 32
"""Deliveries under way together: one slow receiver does not keep the others waiting."""

BACKOFF_S, BACKOFF_FACTOR, BACKOFF_MAX_S = 5.0, 4.0, 6 * 3600.0
"""Waits between tries: 5 s, 20 s, 80 s ... up to six hours. The ten tries of the default settings are spread over 20
hours: the Standard Webhooks specification advises about a day."""

GONE = 410
"""A receiver's word for never again."""

PROBLEM_MAX = 300

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """A message to one webhook: what is posted, under an id that stays the same however often it is."""

    delivery_id: int
    message_id: str
    url: str
    secret: str
    body: str
    tries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """How one try went: delivered where there is no problem; `is_final` where trying again is of no use."""

    problem: str | None = None
    is_final: bool = False


def due(session: Session, now: datetime) -> list[Letter]:
    """The deliveries whose time has come, those that have waited longest first."""
    rows = session.execute(
        select(Delivery, Alert, WebhookRow)
        .join(Alert, Alert.id == Delivery.alert_id)
        .join(WebhookRow, WebhookRow.id == Delivery.webhook_id)
        .where(Delivery.state == DeliveryState.PENDING, Delivery.next_try_at <= now)
        .order_by(Delivery.next_try_at, Delivery.id)
        .limit(AT_ONCE)
    )
    return [
        Letter(
            delivery_id=row.Delivery.id,
            message_id=row.Alert.id,
            url=row.WebhookRow.url,
            secret=row.WebhookRow.secret,
            body=payload(row.Alert.kind, row.Alert.created_at, alert_data(row.Alert)),
            tries=row.Delivery.tries,
        )
        for row in rows
    ]


def payload(kind: str, at: datetime, data: dict[str, Any]) -> str:
    """A message's body in the shape that the Standard Webhooks specification recommends."""
    timestamp = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"type": f"allotd.{kind}", "timestamp": timestamp, "data": data})


def alert_data(alert: Alert) -> dict[str, Any]:
    """An alert as it is told."""
    return {
        "id": alert.id,
        "kind": alert.kind,
        "subject": alert.subject,
        "tenant_id": alert.tenant_id,
        "message": alert.message,
        "details": json.loads(alert.details_json),
    }


async def deliver_all(letters: Sequence[Letter], settings: Settings) -> list[Receipt]:
    """Post letters side by side, each within its time limit. Raises nothing."""
    # No proxy and no .netrc of this process's environment: either would be another way around the check of addresses.
    # No connection is used twice: two names at one address have certificates of their own.
    once = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=settings.webhook_timeout_s, trust_env=False, limits=once) as client:
        return list(await asyncio.gather(*(_deliver(letter, client, settings) for letter in letters)))


async def _deliver(letter: Letter, client: httpx.AsyncClient, settings: Settings) -> Receipt:
    """Post one letter to the address that its URL leads to now, if that is allowed."""
    try:
        async with asyncio.timeout(settings.webhook_timeout_s):
            # Looked up anew each time, and connected to as looked up: a name may lead elsewhere than it did.
            target = await asyncio.to_thread(partial(resolve, letter.url, private_allowed=settings.webhooks_private))
            status = await _post(letter, target, client)
    except TimeoutError:
        return Receipt(problem=f"It did not answer within {settings.webhook_timeout_s:g} s.")
    except SchedulerError as error:
        return Receipt(problem=error.message)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return Receipt(problem=f"It could not be reached: {error!r}"[:PROBLEM_MAX])
    if 200 <= status < 300:
        return Receipt()
    if 300 <= status < 400:
        return Receipt(problem=f"It answered {status}; redirects are not followed, so correct the URL.")
    return Receipt(problem=f"It answered {status}.", is_final=status == GONE)


def record(
    session: Session, letters: Sequence[Letter], receipts: Sequence[Receipt], settings: Settings, now: datetime
) -> None:
    """Write down how tries went, and when to try again what did not arrive."""
    for letter, receipt in zip(letters, receipts, strict=True):
        tries = letter.tries + 1
        values: dict[str, Any] = {"tries": tries, "last_problem": receipt.problem}
        if receipt.problem is None:
            values |= {"state": DeliveryState.DELIVERED, "delivered_at": now}
        elif receipt.is_final or tries >= settings.webhook_tries:
            values |= {"state": DeliveryState.DEAD}
            log.error("webhook_given_up", alert=letter.message_id, tries=tries, problem=receipt.problem)
        else:
            values |= {"next_try_at": now + timedelta(seconds=backoff_s(tries))}
        session.execute(
            update(Delivery)
            .where(and_(Delivery.id == letter.delivery_id, Delivery.state == DeliveryState.PENDING))
            .values(**values)
        )


def backoff_s(tries: int) -> float:
    """How long to wait after that many tries."""
    return min(BACKOFF_MAX_S, BACKOFF_S * math.pow(BACKOFF_FACTOR, min(tries - 1, 20)))


async def _post(letter: Letter, target: Target, client: httpx.AsyncClient) -> int:
    """Post, and return the status alone: what a receiver says beyond it is read by nobody. Follows no redirect."""
    sent_at = datetime.now(UTC)
    headers = {
        "Host": target.host_header,
        "Content-Type": "application/json",
        "User-Agent": "allotd",
        "Webhook-Id": letter.message_id,
        "Webhook-Timestamp": str(int(sent_at.timestamp())),
        "Webhook-Signature": Webhook(letter.secret).sign(letter.message_id, sent_at, letter.body),
    }
    async with client.stream(
        "POST",
        target.connect_url,
        content=letter.body.encode(),
        headers=headers,
        follow_redirects=False,
        extensions={"sni_hostname": target.host},
    ) as response:
        return response.status_code
