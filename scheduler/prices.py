"""What models' tokens cost: price versions are added, never edited, so that every entry's price stays readable."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Correction, PriceRow
from scheduler.errors import InvalidRequest

MODEL_LENGTH_MAX = 256


def set_price(
    session: Session,
    model: str,
    *,
    prompt_nanousd: int,
    completion_nanousd: int,
    cached_nanousd: int | None = None,
    from_at: datetime | None = None,
    now: datetime,
) -> PriceRow:
    """What a model's tokens cost from now on, or from an instant to come, in nano-dollars per token.

    Cached prompt tokens cost as much as any other where nothing else is said. Waves already held keep their price.
    """
    if not model.strip() or len(model) > MODEL_LENGTH_MAX:
        raise InvalidRequest(f"A model's name has 1 to {MODEL_LENGTH_MAX} characters.", param="model")
    if from_at is not None and from_at < now:
        raise InvalidRequest(
            f"{from_at.isoformat()} is past, and what was billed since keeps its price; "
            f"`allotd price correct {model} --from` puts a mistaken price right.",
            param="from",
        )
    row = PriceRow(
        model=model,
        effective_at=from_at or now,
        prompt_nanousd=prompt_nanousd,
        cached_nanousd=prompt_nanousd if cached_nanousd is None else cached_nanousd,
        completion_nanousd=completion_nanousd,
        created_at=now,
    )
    session.add(row)
    session.execute(
        update(Correction)
        .where(Correction.model == model, or_(Correction.to_at.is_(None), Correction.to_at > row.effective_at))
        .values(to_at=row.effective_at)
    )  # a corrected price holds until a newer one begins
    session.flush()
    return row


def list_prices(session: Session, now: datetime) -> Sequence[tuple[PriceRow, bool]]:
    """Every price by model, newest first, and whether it is the one in force."""
    newest = func.row_number().over(
        partition_by=(PriceRow.model, PriceRow.effective_at <= now, PriceRow.ends_at.is_(None)),
        order_by=(PriceRow.effective_at.desc(), PriceRow.id.desc()),
    )
    rows = session.execute(
        select(PriceRow, newest.label("place")).order_by(
            PriceRow.model, PriceRow.effective_at.desc(), PriceRow.id.desc()
        )
    )
    return [(row, place == 1 and row.effective_at <= now and row.ends_at is None) for row, place in rows]
