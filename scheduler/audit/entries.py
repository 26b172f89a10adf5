"""Whether every entry is what its wave and its price row say, and every wave has all of its entries."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import and_, case, func, literal, select

from models.tables import Entry, PriceRow, Wave
from scheduler.audit.discrepancies import Check, Figure
from scheduler.states import WaveState

NONE = literal(0)


@cache
def of_waves() -> Check:
    """A wave's entries hold what it holds and spent what it cost; corrections come on top."""
    original = Entry.kind != "adjust"
    held = func.coalesce(func.sum(Entry.held_delta_nanousd), 0)
    spent = func.coalesce(func.sum(case((original, Entry.spent_delta_nanousd), else_=0)), 0)
    still_held = case((Wave.state == WaveState.HELD, Wave.held_nanousd), else_=0)
    return Check(
        table="waves",
        id=Wave.id,
        figures=(
            Figure(what="held nano-dollars", found=still_held, expected=held),
            Figure(what="cost in nano-dollars", found=Wave.cost_nanousd, expected=spent),
        ),
        rows=select()
        .select_from(Wave)
        .outerjoin(Entry, Entry.wave_id == Wave.id)
        .group_by(Wave.id, Wave.state, Wave.held_nanousd, Wave.cost_nanousd),
    )


@cache
def themselves() -> Check:
    """Each entry recomputed from its wave's tokens and the prices of the row that it names."""
    covered = case((Wave.cost_nanousd < Wave.held_nanousd, Wave.cost_nanousd), else_=Wave.held_nanousd)
    is_release = Entry.kind.in_(("release", "expire"))
    held = case(
        (Entry.kind == "reserve", _most()),
        (Entry.kind == "settle", -covered),
        (is_release, covered - Wave.held_nanousd),
        else_=0,
    )
    spent = case(
        (Entry.kind == "settle", _cost()),
        (Entry.kind == "adjust", Entry.spent_delta_nanousd),  # see `corrections`
        else_=0,
    )
    is_own = and_(
        Entry.tenant_id == Wave.tenant_id,
        Entry.batch_id == Wave.batch_id,
        Entry.query_id == Wave.query_id,
        Entry.model == Wave.model,
        Entry.effective_at == Wave.reserved_at,
        PriceRow.model == Wave.model,
    )
    return Check(
        table="entries",
        id=Entry.id,
        figures=(
            Figure(what="held nano-dollars", found=Entry.held_delta_nanousd, expected=func.coalesce(held, 0)),
            Figure(what="spent nano-dollars", found=Entry.spent_delta_nanousd, expected=func.coalesce(spent, 0)),
            Figure(what="count of facts that are not its wave's", found=case((is_own, 0), else_=1), expected=NONE),
        ),
        rows=select()
        .select_from(Entry)
        .outerjoin(Wave, Wave.id == Entry.wave_id)
        .join(PriceRow, PriceRow.id == Entry.price_id),
    )


@cache
def corrections() -> Check:
    """After each correction, what a wave has been charged is its tokens at the prices of the row it names."""
    charged = (
        func.sum(Entry.spent_delta_nanousd)
        .over(partition_by=Entry.wave_id, order_by=Entry.id, rows=(None, 0))
        .label("charged")
    )
    corrected = select(Entry.wave_id).where(Entry.kind == "adjust")
    running = (
        select(Entry.id, Entry.kind, Entry.wave_id, Entry.price_id, charged)
        .where(Entry.wave_id.in_(corrected))
        .subquery()
    )
    return Check(
        table="entries",
        id=running.c.id,
        figures=(Figure(what="corrected cost in nano-dollars", found=running.c.charged, expected=_cost()),),
        rows=select()
        .select_from(running)
        .join(Wave, Wave.id == running.c.wave_id)
        .join(PriceRow, PriceRow.id == running.c.price_id)
        .where(running.c.kind == "adjust"),
    )


CHECKS = (of_waves, themselves, corrections)


def _cost() -> Any:
    """The wave's tokens at the price row's prices."""
    return (
        (Wave.prompt_tokens - Wave.cached_tokens) * PriceRow.prompt_nanousd
        + Wave.cached_tokens * PriceRow.cached_nanousd
        + Wave.completion_tokens * PriceRow.completion_nanousd
    )


def _most() -> Any:
    """The most that the wave could cost as it was reserved."""
    dearest = case(
        (PriceRow.cached_nanousd > PriceRow.prompt_nanousd, PriceRow.cached_nanousd), else_=PriceRow.prompt_nanousd
    )
    return Wave.prompt_tokens_held * dearest + Wave.samples_asked * Wave.tokens_max * PriceRow.completion_nanousd
