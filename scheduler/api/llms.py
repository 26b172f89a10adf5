"""/v1/models: the language models that are served, and their prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import LlmRow, PriceRow
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.prices import PriceReply, price_reply
from scheduler.api.security import Reader
from scheduler.api.sessions import Now, Reading
from scheduler.api.shapes import Page, Reply, epoch
from scheduler.errors import NotFound
from scheduler.prices import list_prices

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)


class LlmReply(Reply):
    """A served model; without a price it answers nothing."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["allotd"] = "allotd"
    context_tokens: int
    price: PriceReply | None


@router.get("", responses=documented())
def list_llms(_caller: Reader, session: Reading, now: Now) -> Page[LlmReply]:
    """Every model that a worker has seen."""
    rows = session.scalars(select(LlmRow).order_by(LlmRow.name)).all()
    return Page(data=_replies(session, rows, now))


@router.get("/{model:path}", responses=documented())
def get_llm(model: str, _caller: Reader, session: Reading, now: Now) -> LlmReply:
    """One model by its name."""
    row = session.get(LlmRow, model)
    if row is None:
        raise NotFound(f"There is no model '{model}'.", param="model", code="model_not_found")
    return _replies(session, [row], now)[0]


def _replies(session: Session, rows: Sequence[LlmRow], now: Now) -> list[LlmReply]:
    in_force: dict[str, PriceRow] = {row.model: row for row, is_current in list_prices(session, now) if is_current}
    return [
        LlmReply(
            id=row.name,
            created=epoch(row.first_seen_at),
            context_tokens=row.context_tokens,
            price=price_reply(in_force[row.name], now, in_force=True) if row.name in in_force else None,
        )
        for row in rows
    ]
