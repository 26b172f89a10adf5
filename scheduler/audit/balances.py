"""Whether every balance is the sum of its entries: tenants, batches, queries, and the periods of caps."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import and_, case, func, literal, or_, select

from models.tables import Batch, Cap, CapPeriod, Entry, QueryRow, SampleRow, Tenant, Wave
from scheduler.audit.discrepancies import Check, Figure
from scheduler.ledger.samples import LOST, UNATTRIBUTED
from scheduler.states import WaveState


@cache
def tenants() -> Check:
    """What a tenant holds and has spent."""
    return _purse(Tenant, Entry.tenant_id)


@cache
def batches() -> Check:
    """What a batch holds and has spent."""
    return _purse(Batch, Entry.batch_id)


@cache
def queries() -> Check:
    """What a query holds and has spent."""
    return _purse(QueryRow, Entry.query_id)


@cache
def cap_periods() -> Check:
    """Periods of caps in force: the entries of that tenant, model and time."""
    return Check(
        table="cap_periods",
        id=CapPeriod.id,
        figures=(
            Figure(what="held nano-dollars", found=CapPeriod.held_nanousd, expected=_sum(Entry.held_delta_nanousd)),
            Figure(what="spent nano-dollars", found=CapPeriod.spent_nanousd, expected=_sum(Entry.spent_delta_nanousd)),
        ),
        rows=select()
        .select_from(CapPeriod)
        .join(Cap, Cap.id == CapPeriod.cap_id)
        .outerjoin(Entry, and_(_counts_to_cap(), _within_period()))
        .where(Cap.removed_at.is_(None))
        .group_by(CapPeriod.id, CapPeriod.held_nanousd, CapPeriod.spent_nanousd),
    )


@cache
def uncounted() -> Check:
    """Money held since a cap was set is in some period of it: a period that is gone would let it be spent again."""
    period = select(CapPeriod.id).where(CapPeriod.cap_id == Cap.id, _within_period()).correlate(Cap, Entry).exists()
    return Check(
        table="caps",
        id=Cap.id,
        figures=(Figure(what="entries in no period", found=func.count(Entry.id), expected=literal(0)),),
        rows=select()
        .select_from(Cap)
        .join(Entry, and_(_counts_to_cap(), Entry.effective_at >= Cap.created_at))
        .where(Cap.removed_at.is_(None), ~period)
        .group_by(Cap.id),
    )


@cache
def counters() -> Check:
    """What a query's waves billed is what it says it used, and its samples are all there."""
    billed = (
        select(
            Wave.query_id,
            *(_sum(getattr(Wave, name)).label(name) for name in _TOKENS),
        )
        .where(Wave.state != WaveState.HELD)
        .group_by(Wave.query_id)
        .subquery()
    )
    sent = SampleRow.finish_reason.not_in((LOST, UNATTRIBUTED))
    drawn = (
        select(SampleRow.query_id, _sum(case((sent, 1), else_=0)).label("drawn"))
        .group_by(SampleRow.query_id)
        .subquery()
    )
    tokens = [
        Figure(what=name.replace("_", " "), found=getattr(QueryRow, name), expected=func.coalesce(billed.c[name], 0))
        for name in _TOKENS
    ]
    samples = Figure(what="samples drawn", found=QueryRow.samples_drawn, expected=func.coalesce(drawn.c.drawn, 0))
    return Check(
        table="queries",
        id=QueryRow.id,
        figures=(samples, *tokens),
        rows=select()
        .select_from(QueryRow)
        .outerjoin(billed, billed.c.query_id == QueryRow.id)
        .outerjoin(drawn, drawn.c.query_id == QueryRow.id),
    )


CHECKS = (tenants, batches, queries, cap_periods, uncounted, counters)

_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


def _purse(owner: type[Tenant] | type[Batch] | type[QueryRow], key: Any) -> Check:
    sums = (
        select(
            key.label("owner"),
            _sum(Entry.held_delta_nanousd).label("held"),
            _sum(Entry.spent_delta_nanousd).label("spent"),
        )
        .group_by(key)
        .subquery()
    )
    return Check(
        table=owner.__tablename__,
        id=owner.id,
        figures=(
            Figure(what="held nano-dollars", found=owner.held_nanousd, expected=func.coalesce(sums.c.held, 0)),
            Figure(what="spent nano-dollars", found=owner.spent_nanousd, expected=func.coalesce(sums.c.spent, 0)),
        ),
        rows=select().select_from(owner).outerjoin(sums, sums.c.owner == owner.id),
    )


def _counts_to_cap() -> Any:
    return and_(Entry.tenant_id == Cap.tenant_id, or_(Cap.model.is_(None), Entry.model == Cap.model))


def _within_period() -> Any:
    return and_(
        Entry.effective_at >= CapPeriod.starts_at,
        or_(CapPeriod.ends_at.is_(None), Entry.effective_at < CapPeriod.ends_at),
    )


def _sum(column: Any) -> Any:
    return func.coalesce(func.sum(column), 0)
