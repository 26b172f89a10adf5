"""/v1/prices: what models' tokens cost. Admins set and correct them; everybody may look."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from models.tables import PriceRow
from scheduler import corrections, prices
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin, Reader
from scheduler.api.sessions import Now, Reading, Writing
from scheduler.api.shapes import Body, Instant, Page, Reply, ShortText, TokenPrice, epoch, epoch_or_none, in_utc, usd
from scheduler.core.pricing import nanousd_per_token, usd_per_mtok
from scheduler.corrections import NewPrice
from scheduler.throughput import recent_throughput

router = APIRouter(prefix="/v1/prices", tags=["prices"], route_class=StrictRoute)

From = Annotated[Instant, Field(alias="from", description="A date (from midnight UTC) or an instant.")]


class PriceBody(Body):
    """A price to hold from now on, or from an instant to come, in USD per million tokens."""

    model: ShortText
    prompt_usd_per_mtok: TokenPrice
    completion_usd_per_mtok: TokenPrice
    cached_usd_per_mtok: TokenPrice | None = None
    from_: From = None


class PriceReply(Reply):
    """One version of a model's price; `in_force` marks the one that counts now.

    `status` is "coming" before it begins, "in_force", "past", or "correction" where it counts for a time that is past,
    which then ends at `ends_at`.
    """

    id: int
    object: Literal["price"] = "price"
    model: str
    effective_at: int
    ends_at: int | None
    in_force: bool
    status: Literal["coming", "in_force", "past", "correction"]
    prompt_nanousd_per_token: int
    prompt_usd_per_mtok: str
    cached_nanousd_per_token: int
    cached_usd_per_mtok: str
    completion_nanousd_per_token: int
    completion_usd_per_mtok: str


class CorrectionBody(Body):
    """A mistaken price to be put right: what tokens cost after all, in USD per million, between two instants.

    Without `to` it also holds from now on. With `dry_run` nothing is changed.
    """

    model: ShortText
    prompt_usd_per_mtok: TokenPrice
    completion_usd_per_mtok: TokenPrice
    cached_usd_per_mtok: TokenPrice | None = None
    from_: Annotated[datetime, Field(alias="from", description="A date (from midnight UTC) or an instant.")]
    to: Annotated[Instant, Field(description="The first instant or date after it.")] = None
    dry_run: bool = False


class ExcessReply(Reply):
    """A limit that more is spent and held under than it allows; no new wave starts under it."""

    scope: str
    limit_nanousd: int
    limit_usd: str
    used_nanousd: int
    used_usd: str


class TenantCorrectionReply(Reply):
    """What the correction took from a tenant and gave back to it, and the limits it went over."""

    tenant: str
    tenant_name: str
    waves: int
    charged_nanousd: int
    charged_usd: str
    refunded_nanousd: int
    refunded_usd: str
    exceeded: list[ExcessReply]


class CorrectionReply(Reply):
    """What a correction did or, as a dry run, would do."""

    object: Literal["price_correction"] = "price_correction"
    model: str
    price_id: int | None
    from_at: int
    to_at: int | None
    dry_run: bool
    charged_usd: str
    refunded_usd: str
    tenants: list[TenantCorrectionReply]


class ThroughputReply(Reply):
    """Tokens billed, and the seconds in which at least one wave ran."""

    object: Literal["throughput"] = "throughput"
    model: str
    busy_s: float
    prompt_tokens: int
    completion_tokens: int


@router.post("", responses=documented(409))
def set_price(body: PriceBody, _caller: Admin, session: Writing, now: Now) -> PriceReply:
    """Set what a model's tokens cost from now on or from an instant to come; what is billed already stays."""
    price = _new_price(body)
    row = prices.set_price(
        session,
        body.model,
        prompt_nanousd=price.prompt_nanousd,
        completion_nanousd=price.completion_nanousd,
        cached_nanousd=price.cached_nanousd,
        from_at=in_utc(body.from_, "from"),
        now=now,
    )
    return price_reply(row, now, in_force=row.effective_at <= now)


@router.post("/corrections", responses=documented(409))
def correct_price(body: CorrectionBody, _caller: Admin, session: Writing, now: Now) -> CorrectionReply:
    """Put a mistaken price right, by entries on top of what was billed. The same asked for twice is done once."""
    from_at = in_utc(body.from_, "from")
    assert from_at is not None
    report = corrections.correct_price(
        session,
        body.model,
        _new_price(body),
        from_at=from_at,
        to_at=in_utc(body.to, "to"),
        is_dry_run=body.dry_run,
        now=now,
    )
    return CorrectionReply(
        model=report.model,
        price_id=report.price_id,
        from_at=epoch(report.from_at),
        to_at=epoch_or_none(report.to_at),
        dry_run=report.is_dry_run,
        charged_usd=usd(sum(one.adjusted.charged_nanousd for one in report.tenants)),
        refunded_usd=usd(sum(one.adjusted.refunded_nanousd for one in report.tenants)),
        tenants=[_tenant(one) for one in report.tenants],
    )


@router.get("/throughput", responses=documented())
def throughput(
    _caller: Admin,
    session: Reading,
    now: Now,
    model: Annotated[str, Query(min_length=1, max_length=256)],
    hours: Annotated[float, Query(gt=0, le=24 * 366, description="How far to look back.")] = 24,
) -> ThroughputReply:
    """How many tokens a model made lately, and in how many seconds: what a price from GPU cost is made of."""
    found = recent_throughput(session, model, hours, now)
    return ThroughputReply(
        model=model,
        busy_s=found.busy_s,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
    )


@router.get("", responses=documented())
def list_prices(_caller: Reader, session: Reading, now: Now) -> Page[PriceReply]:
    """Every price there was and those that are to come, by model, newest first."""
    return Page(data=[price_reply(row, now, in_force=in_force) for row, in_force in prices.list_prices(session, now)])


def price_reply(row: PriceRow, now: datetime, *, in_force: bool) -> PriceReply:
    """A price as it is sent."""
    return PriceReply(
        id=row.id,
        model=row.model,
        effective_at=epoch(row.effective_at),
        ends_at=epoch_or_none(row.ends_at),
        in_force=in_force,
        status=_status(row, now, in_force),
        prompt_nanousd_per_token=row.prompt_nanousd,
        prompt_usd_per_mtok=usd_per_mtok(row.prompt_nanousd),
        cached_nanousd_per_token=row.cached_nanousd,
        cached_usd_per_mtok=usd_per_mtok(row.cached_nanousd),
        completion_nanousd_per_token=row.completion_nanousd,
        completion_usd_per_mtok=usd_per_mtok(row.completion_nanousd),
    )


def _status(row: PriceRow, now: datetime, in_force: bool) -> Literal["coming", "in_force", "past", "correction"]:
    if in_force:
        return "in_force"
    if row.ends_at is not None:
        return "correction"
    return "coming" if row.effective_at > now else "past"


def _new_price(body: PriceBody | CorrectionBody) -> NewPrice:
    prompt = nanousd_per_token(body.prompt_usd_per_mtok)
    cached = body.cached_usd_per_mtok
    return NewPrice(
        prompt_nanousd=prompt,
        cached_nanousd=prompt if cached is None else nanousd_per_token(cached),
        completion_nanousd=nanousd_per_token(body.completion_usd_per_mtok),
    )


def _tenant(one: corrections.TenantCorrection) -> TenantCorrectionReply:
    return TenantCorrectionReply(
        tenant=one.tenant_id,
        tenant_name=one.tenant_name,
        waves=one.adjusted.waves,
        charged_nanousd=one.adjusted.charged_nanousd,
        charged_usd=usd(one.adjusted.charged_nanousd),
        refunded_nanousd=one.adjusted.refunded_nanousd,
        refunded_usd=usd(one.adjusted.refunded_nanousd),
        exceeded=[
            ExcessReply(
                scope=excess.scope,
                limit_nanousd=excess.limit_nanousd,
                limit_usd=usd(excess.limit_nanousd),
                used_nanousd=excess.used_nanousd,
                used_usd=usd(excess.used_nanousd),
            )
            for excess in one.exceeded
        ],
    )
