"""Whether every wave's cost is that of its samples, and every hold has somebody who will settle it."""

from __future__ import annotations

from functools import cache

from sqlalchemy import case, func, literal, select

from models.tables import Attempt, PriceRow, SampleRow, Wave
from scheduler.audit.discrepancies import Check, Figure
from scheduler.states import AttemptState, WaveState

NONE = literal(0)


@cache
def against_samples() -> Check:
    """A closed wave billed the tokens of its samples at its price row's prices; a held one has none yet."""
    kept = (
        select(
            SampleRow.wave_id,
            func.sum(SampleRow.tokens).label("tokens"),
            func.sum(case((SampleRow.query_id == Wave.query_id, 0), else_=1)).label("strays"),
        )
        .join(Wave, Wave.id == SampleRow.wave_id)
        .group_by(SampleRow.wave_id)
        .subquery()
    )
    sampled = func.coalesce(kept.c.tokens, 0)
    cost = (
        (Wave.prompt_tokens - Wave.cached_tokens) * PriceRow.prompt_nanousd
        + Wave.cached_tokens * PriceRow.cached_nanousd
        + sampled * PriceRow.completion_nanousd
    )
    is_held = Wave.state == WaveState.HELD
    billed = case((is_held, 0), else_=Wave.completion_tokens)
    return Check(
        table="waves",
        id=Wave.id,
        figures=(
            Figure(what="completion tokens", found=billed, expected=sampled),
            Figure(what="cost in nano-dollars", found=Wave.cost_nanousd, expected=case((is_held, 0), else_=cost)),
            Figure(what="samples of other queries", found=func.coalesce(kept.c.strays, 0), expected=NONE),
            Figure(
                what="prices of other models", found=case((PriceRow.model == Wave.model, 0), else_=1), expected=NONE
            ),
        ),
        rows=select()
        .select_from(Wave)
        .join(PriceRow, PriceRow.id == Wave.price_id)
        .outerjoin(kept, kept.c.wave_id == Wave.id),
    )


@cache
def held_by_nobody() -> Check:
    """Money is held only for attempts that run: nobody would ever release it."""
    return Check(
        table="waves",
        id=Wave.id,
        figures=(Figure(what="held nano-dollars that nobody will release", found=Wave.held_nanousd, expected=NONE),),
        rows=select()
        .select_from(Wave)
        .outerjoin(Attempt, Attempt.id == Wave.attempt_id)
        .where(Wave.state == WaveState.HELD, func.coalesce(Attempt.state, "") != AttemptState.RUNNING),
    )


CHECKS = (against_samples, held_by_nobody)
