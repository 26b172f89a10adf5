"""/v1/caps: how much a tenant may spend per period. Admins set them; tenants see their own."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy.orm import Session

from scheduler import caps
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin, Caller, Reader
from scheduler.api.sessions import Now, Reading, Writing
from scheduler.api.shapes import Amount, Body, Page, Reply, ShortText, epoch_or_none, usd, usd_or_none
from scheduler.core.periods import Period
from scheduler.core.pricing import parse_usd
from scheduler.errors import InvalidRequest, NotFound
from scheduler.tenants import find_tenant

router = APIRouter(prefix="/v1/caps", tags=["caps"], route_class=StrictRoute)


class CapBody(Body):
    """A limit to be set, or changed where the tenant has one of this period and model."""

    tenant: ShortText
    limit_usd: Amount
    period: Period
    soft: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="The share of the limit at which to alert once a period. It stays as it is where this is left "
            "out; null removes it.",
        ),
    ] = None
    model: ShortText | None = None


class CapReply(Reply):
    """A limit and its present period; `turns_at` is when it starts anew, at midnight in `timezone`.

    `first_refused_at` is when a query first had to wait for it in this period, `phantom_block_*` what was neither spent
    nor held at that moment (always less than the smallest wave could cost), `held_at_refusal_*` what was held.
    """

    id: str
    object: Literal["cap"] = "cap"
    tenant: str
    tenant_name: str
    model: str | None
    period: Period
    limit_nanousd: int
    limit_usd: str
    spent_nanousd: int
    spent_usd: str
    held_nanousd: int
    held_usd: str
    left_nanousd: int
    left_usd: str
    turns_at: int | None
    timezone: str
    soft: float | None
    soft_alerted_at: int | None
    first_refused_at: int | None
    phantom_block_nanousd: int | None
    phantom_block_usd: str | None
    held_at_refusal_nanousd: int | None
    held_at_refusal_usd: str | None


class RemovedReply(Reply):
    """What was removed."""

    id: str
    object: Literal["cap"] = "cap"
    deleted: Literal[True] = True


@router.post("", responses=documented(409))
def set_cap(body: CapBody, _caller: Admin, session: Writing, now: Now) -> CapReply:
    """Limit a tenant's spending; what it spent in the present period counts already."""
    status = caps.set_cap(
        session,
        find_tenant(session, body.tenant),
        limit_nanousd=_limit(body),
        period=body.period,
        model=body.model,
        soft=body.soft,
        no_soft=body.soft is None and "soft" in body.model_fields_set,
        now=now,
    )
    return cap_reply(status)


@router.get("", responses=documented())
def list_caps(
    caller: Reader,
    session: Reading,
    now: Now,
    tenant: Annotated[str | None, Query(description="A tenant's name or id; all that you may see without it.")] = None,
) -> Page[CapReply]:
    """The limits in force, with what is spent, held and left of each."""
    tenant_id = visible_tenant(session, caller, tenant)
    return Page(data=[cap_reply(status) for status in caps.list_caps(session, tenant_id, now)])


@router.delete("/{cap_id}", responses=documented(409))
def remove_cap(cap_id: str, _caller: Admin, session: Writing, now: Now) -> RemovedReply:
    """Lift a limit."""
    caps.remove_cap(session, cap_id, now)
    return RemovedReply(id=cap_id)


def _limit(body: CapBody) -> int:
    try:
        return parse_usd(body.limit_usd)
    except InvalidRequest as error:
        if error.attributes.get("amount_usd") != 0:
            raise
    raise InvalidRequest(
        "A cap of 0 USD would let nothing run, and what is queued would wait for ever; to stop a tenant, disable it: "
        f"`allotd tenant disable {body.tenant}`.",
        param="limit_usd",
    )


def visible_tenant(session: Session, caller: Caller, named: str | None) -> str | None:
    """The tenant a question is about, by name or id; the caller's own where none is named. Raises NotFound."""
    if named is None:
        return caller.tenant_id
    tenant_id = find_tenant(session, named).id
    if not caller.may_see(tenant_id):
        raise NotFound(f"There is no tenant '{named}'.", param="tenant")
    return tenant_id


def cap_reply(status: caps.CapStatus) -> CapReply:
    """A limit as it is sent."""
    return CapReply(
        id=status.id,
        tenant=status.tenant_id,
        tenant_name=status.tenant_name,
        model=status.model,
        period=status.period,
        limit_nanousd=status.limit_nanousd,
        limit_usd=usd(status.limit_nanousd),
        spent_nanousd=status.spent_nanousd,
        spent_usd=usd(status.spent_nanousd),
        held_nanousd=status.held_nanousd,
        held_usd=usd(status.held_nanousd),
        left_nanousd=status.left_nanousd,
        left_usd=usd(status.left_nanousd),
        turns_at=epoch_or_none(status.turns_at),
        timezone=status.timezone,
        soft=status.soft,
        soft_alerted_at=epoch_or_none(status.soft_alerted_at),
        first_refused_at=epoch_or_none(status.first_refused_at),
        phantom_block_nanousd=status.phantom_block_nanousd,
        phantom_block_usd=usd_or_none(status.phantom_block_nanousd),
        held_at_refusal_nanousd=status.held_at_refusal_nanousd,
        held_at_refusal_usd=usd_or_none(status.held_at_refusal_nanousd),
    )
