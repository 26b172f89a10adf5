"""/v1/prices: what models' tokens cost. Admins set them; everybody may look."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from models.tables import PriceRow
from scheduler import prices
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin, Reader
from scheduler.api.sessions import Now, Reading, Writing
from scheduler.api.shapes import Body, Page, Reply, ShortText, TokenPrice, epoch
from scheduler.core.pricing import NANOUSD_PER_TOKEN_PER_USD_PER_MTOK, nanousd_per_token

router = APIRouter(prefix="/v1/prices", tags=["prices"], route_class=StrictRoute)


class PriceBody(Body):
    """A price to hold from now on, in USD per million tokens."""

    model: ShortText
    prompt_usd_per_mtok: TokenPrice
    completion_usd_per_mtok: TokenPrice
    cached_usd_per_mtok: TokenPrice | None = None


class PriceReply(Reply):
    """One version of a model's price; `in_force` marks the one that counts now."""

    id: int
    object: Literal["price"] = "price"
    model: str
    effective_at: int
    in_force: bool
    prompt_nanousd_per_token: int
    prompt_usd_per_mtok: str
    cached_nanousd_per_token: int
    cached_usd_per_mtok: str
    completion_nanousd_per_token: int
    completion_usd_per_mtok: str


@router.post("", responses=documented(409))
def set_price(body: PriceBody, _caller: Admin, session: Writing, now: Now) -> PriceReply:
    """Set what a model's tokens cost from now on; what is billed already stays."""
    row = prices.set_price(
        session,
        body.model,
        prompt_nanousd=nanousd_per_token(body.prompt_usd_per_mtok),
        completion_nanousd=nanousd_per_token(body.completion_usd_per_mtok),
        cached_nanousd=None if body.cached_usd_per_mtok is None else nanousd_per_token(body.cached_usd_per_mtok),
        now=now,
    )
    return price_reply(row, in_force=True)


@router.get("", responses=documented())
def list_prices(_caller: Reader, session: Reading, now: Now) -> Page[PriceReply]:
    """Every price there was, by model, newest first."""
    return Page(data=[price_reply(row, in_force=in_force) for row, in_force in prices.list_prices(session, now)])


def price_reply(row: PriceRow, *, in_force: bool) -> PriceReply:
    """A price as it is sent."""
    return PriceReply(
        id=row.id,
        model=row.model,
        effective_at=epoch(row.effective_at),
        in_force=in_force,
        prompt_nanousd_per_token=row.prompt_nanousd,
        prompt_usd_per_mtok=_usd_per_mtok(row.prompt_nanousd),
        cached_nanousd_per_token=row.cached_nanousd,
        cached_usd_per_mtok=_usd_per_mtok(row.cached_nanousd),
        completion_nanousd_per_token=row.completion_nanousd,
        completion_usd_per_mtok=_usd_per_mtok(row.completion_nanousd),
    )


def _usd_per_mtok(nanousd_per_token: int) -> str:
    whole, rest = divmod(nanousd_per_token, NANOUSD_PER_TOKEN_PER_USD_PER_MTOK)
    return f"{whole}.{rest:03}"
