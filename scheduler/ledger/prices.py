"""Which price row an instant's tokens are paid by."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import PriceRow
from scheduler.core.pricing import Price
from scheduler.errors import ModelUnpriced


def price_at(session: Session, model: str, now: datetime) -> Price:
    """The price of a model's tokens at an instant. Raises ModelUnpriced."""
    row = session.scalars(
        select(PriceRow)
        .where(PriceRow.model == model, PriceRow.effective_at <= now)
        .order_by(PriceRow.effective_at.desc(), PriceRow.id.desc())
        .limit(1)
    ).first()
    if row is None:
        raise ModelUnpriced(
            f"Model '{model}' has no price, so what it spends cannot be limited; set one with "
            f"`allotd price set {model} --prompt USD_PER_MTOK --completion USD_PER_MTOK`.",
            model=model,
        )
    return as_price(row)


def as_price(row: PriceRow) -> Price:
    """A price row as the value that computes."""
    return Price(
        id=row.id,
        model=row.model,
        prompt_nanousd=row.prompt_nanousd,
        cached_nanousd=row.cached_nanousd,
        completion_nanousd=row.completion_nanousd,
    )
