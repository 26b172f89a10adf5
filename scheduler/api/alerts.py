"""/v1/alerts: what people were told. Tenants see what is about them, admins everything and where it went."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from models.tables import Delivery
from scheduler import alerts
from scheduler.api.bodies import StrictRoute
from scheduler.api.caps import visible_tenant
from scheduler.api.errors import documented
from scheduler.api.security import Reader
from scheduler.api.sessions import Reading
from scheduler.api.shapes import Page, Reply, epoch, epoch_or_none, page
from scheduler.states import DeliveryState
from scheduler.types import AlertKind

router = APIRouter(prefix="/v1/alerts", tags=["alerts"], route_class=StrictRoute)

LIST_MAX = 100


class DeliveryReply(Reply):
    """How far an alert has got to one webhook; `dead` was given up after `tries`."""

    webhook: str
    state: DeliveryState
    tries: int
    problem: str | None
    next_try_at: int | None
    delivered_at: int | None


class AlertReply(Reply):
    """An alert; `subject` is the id of what it is about. Only admins see its deliveries."""

    id: str
    object: Literal["alert"] = "alert"
    kind: AlertKind
    subject: str
    tenant: str | None
    message: str
    details: dict[str, Any]
    created_at: int
    deliveries: list[DeliveryReply] | None


@router.get("", responses=documented())
def list_alerts(
    caller: Reader,
    session: Reading,
    tenant: Annotated[str | None, Query(description="A tenant's name or id; all that you may see without it.")] = None,
    kind: Annotated[AlertKind | None, Query(description="One kind only.")] = None,
    after: Annotated[str | None, Query(description="The id of the last alert of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_MAX,
) -> Page[AlertReply]:
    """Alerts, newest first."""
    tenant_id = visible_tenant(session, caller, tenant)
    told, has_more = alerts.list_alerts(session, tenant_id=tenant_id, kind=kind, after=after, limit=limit)
    return page([_alert(one, is_admin=caller.identity.is_admin) for one in told], has_more=has_more)


def _alert(told: alerts.Told, *, is_admin: bool) -> AlertReply:
    alert = told.alert
    return AlertReply(
        id=alert.id,
        kind=AlertKind(alert.kind),
        subject=alert.subject,
        tenant=alert.tenant_id,
        message=alert.message,
        details=json.loads(alert.details_json),
        created_at=epoch(alert.created_at),
        deliveries=[_delivery(one) for one in told.deliveries] if is_admin else None,
    )


def _delivery(row: Delivery) -> DeliveryReply:
    is_pending = row.state == DeliveryState.PENDING
    return DeliveryReply(
        webhook=row.webhook_id,
        state=DeliveryState(row.state),
        tries=row.tries,
        problem=row.last_problem,
        next_try_at=epoch(row.next_try_at) if is_pending else None,
        delivered_at=epoch_or_none(row.delivered_at),
    )
