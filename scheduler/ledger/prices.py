"""Which price row an instant's tokens are paid by."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import Session

from models.tables import Correction, PriceRow, Wave
from scheduler.core.pricing import Price
from scheduler.errors import ModelUnpriced


def price_at(session: Session, model: str, now: datetime) -> Price:
    """The price of a model's tokens at an instant. Raises ModelUnpriced."""
    row = session.scalars(_AT, {"named": model, "at": now}).first()
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


def corrected_models(session: Session) -> Sequence[str]:
    """The models of which a price was put right."""
    return session.scalars(select(Correction.model).distinct()).all()


def corrected_price_id() -> Any:
    """For a wave, as part of a statement: the price row of the newest correction that covers it, or NULL."""
    return (
        select(Correction.price_id)
        .where(
            Correction.model == Wave.model,
            Correction.from_at <= Wave.reserved_at,
            or_(Correction.to_at.is_(None), Correction.to_at > Wave.reserved_at),
        )
        .order_by(Correction.id.desc())
        .limit(1)
        .correlate(Wave)
        .scalar_subquery()
    )


_AT = (
    select(PriceRow)
    .where(PriceRow.model == bindparam("named"), PriceRow.effective_at <= bindparam("at"), PriceRow.ends_at.is_(None))
    .order_by(PriceRow.effective_at.desc(), PriceRow.id.desc())
    .limit(1)
)
