"""/v1/webhooks: where alerts are posted to. For admins, because the server connects to what is named here."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from models.tables import WebhookRow
from scheduler import addresses, delivery, webhooks
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin
from scheduler.api.sessions import Now, Reading, WithServices, Writing
from scheduler.api.shapes import Body, Page, Reply, Text, epoch
from scheduler.database import reading
from scheduler.types import AlertKind
from scheduler.wiring import Services

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=StrictRoute)

TEST_KIND = "test"


class NewWebhookBody(Body):
    """An address to post alerts to."""

    url: Annotated[
        Text,
        Field(
            min_length=1,
            description="http or https, leading to a public address unless the server allows private ones.",
            json_schema_extra={"format": "uri", "pattern": "^https?://", "maxLength": addresses.URL_MAX},
        ),
    ]
    kinds: Annotated[
        tuple[AlertKind, ...] | None, Field(min_length=1, description="Which alerts; all where it is left out.")
    ] = None


class WebhookReply(Reply):
    """A webhook without its secret; `kinds` is null where it gets all alerts."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    kinds: list[AlertKind] | None
    created_at: int


class NewWebhookReply(WebhookReply):
    """A webhook; `secret` verifies what it gets (standardwebhooks.com), and is shown this once."""

    secret: str


class RemovedWebhookReply(Reply):
    """What was removed."""

    id: str
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


class TestReply(Reply):
    """Whether a test message arrived, and if not, why."""

    id: str
    object: Literal["webhook_test"] = "webhook_test"
    delivered: bool
    problem: str | None


@router.post("", responses=documented(409))
def add_webhook(body: NewWebhookBody, _caller: Admin, services: WithServices, now: Now) -> NewWebhookReply:
    """Post alerts to an address from now on. The reply alone holds the secret that verifies them."""
    addresses.resolve(body.url, private_allowed=services.settings.webhooks_private)  # before any transaction is open
    with services.sessions.begin() as session:
        made = webhooks.add_webhook(session, body.url, body.kinds or (), now)
    return NewWebhookReply(**_webhook(made.row).model_dump(), secret=made.secret)


@router.get("", responses=documented())
def list_webhooks(_caller: Admin, session: Reading) -> Page[WebhookReply]:
    """The webhooks there are, oldest first, without their secrets."""
    return Page(data=[_webhook(row) for row in webhooks.list_webhooks(session)])


@router.delete("/{webhook_id}", responses=documented(409))
def remove_webhook(webhook_id: str, _caller: Admin, session: Writing, now: Now) -> RemovedWebhookReply:
    """Post nothing more to an address."""
    webhooks.remove_webhook(session, webhook_id, now)
    return RemovedWebhookReply(id=webhook_id)


@router.post("/{webhook_id}/test", responses=documented(409))
async def try_webhook(webhook_id: str, _caller: Admin, services: WithServices, now: Now) -> TestReply:
    """Post a test message at once, one try, and say how it went."""
    row = await run_in_threadpool(_find, services, webhook_id)
    message_id = f"test_{secrets.token_hex(12)}"
    letter = delivery.Letter(
        delivery_id=0,
        message_id=message_id,
        url=row.url,
        secret=row.secret,
        body=delivery.payload(TEST_KIND, now, {"id": message_id, "message": "allotd can reach this webhook."}),
        tries=0,
    )
    [receipt] = await delivery.deliver_all([letter], services.settings)
    return TestReply(id=message_id, delivered=receipt.problem is None, problem=receipt.problem)


def _find(services: Services, webhook_id: str) -> WebhookRow:
    with reading(services.sessions) as session:
        return webhooks.find_webhook(session, webhook_id)


def _webhook(row: WebhookRow) -> WebhookReply:
    kinds = [AlertKind(kind) for kind in row.kinds.split()] if row.kinds is not None else None
    return WebhookReply(id=row.id, url=row.url, kinds=kinds, created_at=epoch(row.created_at))
