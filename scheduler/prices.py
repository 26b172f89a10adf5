"""What models' tokens cost: price versions are added, never edited, so that every entry's price stays readable."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import PriceRow
from scheduler.errors import InvalidRequest

MODEL_LENGTH_MAX = 256


def set_price(
    session: Session,
    model: str,
    *,
    prompt_nanousd: int,
    completion_nanousd: int,
    cached_nanousd: int | None = None,
    now: datetime,
) -> PriceRow:
    """What a model's tokens cost from now on, in nano-dollars per token.

    Cached prompt tokens cost as much as any other where nothing else is said. Waves already held keep their price.
    """
    if not model.strip() or len(model) > MODEL_LENGTH_MAX:
        raise InvalidRequest(f"A model's name has 1 to {MODEL_LENGTH_MAX} characters.", param="model")
    row = PriceRow(
        model=model,
        effective_at=now,
        prompt_nanousd=prompt_nanousd,
        cached_nanousd=prompt_nanousd if cached_nanousd is None else cached_nanousd,
        completion_nanousd=completion_nanousd,
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row


def list_prices(session: Session, now: datetime) -> Sequence[tuple[PriceRow, bool]]:
    """Every price by model, newest first, and whether it is the one in force."""
    newest = func.row_number().over(
        partition_by=(PriceRow.model, PriceRow.effective_at <= now),
        order_by=(PriceRow.effective_at.desc(), PriceRow.id.desc()),
    )
    rows = session.execute(
        select(PriceRow, newest.label("place")).order_by(
            PriceRow.model, PriceRow.effective_at.desc(), PriceRow.id.desc()
        )
    )
    return [(row, place == 1 and row.effective_at <= now) for row, place in rows]
