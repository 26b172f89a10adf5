"""Whether the books balance: every purse from its entries, every entry from its samples, to the nano-dollar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, case, func, or_, select
from sqlalchemy.orm import Session

from models.tables import Batch, Cap, CapPeriod, Entry, PriceRow, QueryRow, SampleRow, Tenant, Wave
from scheduler.states import WaveState


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """One sum that does not add up."""

    where: str
    what: str
    booked: int
    recomputed: int

    def __str__(self) -> str:
        return f"{self.where}: {self.what} is {self.booked}, but its parts add up to {self.recomputed}"


def discrepancies(session: Session) -> Iterator[Discrepancy]:
    """Everything that does not add up, in one consistent view of the database; nothing where the books balance."""
    for check in (_purses, _cap_periods, _waves_against_samples, _waves_against_entries, _orphans):
        yield from check(session)


def _purses(session: Session) -> Iterator[Discrepancy]:
    """Tenants, batches and queries: what they hold and have spent is the sum of their entries."""
    owners: tuple[tuple[str, Any, Any], ...] = (
        ("tenant", Tenant, Entry.tenant_id),
        ("batch", Batch, Entry.batch_id),
        ("query", QueryRow, Entry.query_id),
    )
    for name, owner, key in owners:
        sums = select(key.label("owner"), *_entry_sums()).group_by(key).subquery()
        statement = select(
            owner.id,
            owner.held_nanousd,
            owner.spent_nanousd,
            func.coalesce(sums.c.held, 0),
            func.coalesce(sums.c.spent, 0),
        ).outerjoin(sums, sums.c.owner == owner.id)
        yield from _compare(session, name, statement)


def _cap_periods(session: Session) -> Iterator[Discrepancy]:
    """Periods of live caps: the entries of that tenant, model and time."""
    inside = and_(
        Entry.tenant_id == Cap.tenant_id,
        or_(Cap.model.is_(None), Entry.model == Cap.model),
        Entry.effective_at >= CapPeriod.starts_at,
        or_(CapPeriod.ends_at.is_(None), Entry.effective_at < CapPeriod.ends_at),
    )
    statement = (
        select(CapPeriod.id, CapPeriod.held_nanousd, CapPeriod.spent_nanousd, *_entry_sums())
        .join(Cap, Cap.id == CapPeriod.cap_id)
        .outerjoin(Entry, inside)
        .where(Cap.removed_at.is_(None))
        .group_by(CapPeriod.id, CapPeriod.held_nanousd, CapPeriod.spent_nanousd)
    )
    yield from _compare(session, "cap period", statement)


def _compare(session: Session, name: str, statement: Select[Any]) -> Iterator[Discrepancy]:
    for owner_id, held, spent, held_sum, spent_sum in session.execute(statement.execution_options(yield_per=1000)):
        if held != held_sum:
            yield Discrepancy(where=f"{name} {owner_id}", what="held nano-dollars", booked=held, recomputed=held_sum)
        if spent != spent_sum:
            yield Discrepancy(where=f"{name} {owner_id}", what="spent nano-dollars", booked=spent, recomputed=spent_sum)


def _waves_against_samples(session: Session) -> Iterator[Discrepancy]:
    """A closed wave billed the tokens of its samples, at its price row's prices."""
    tokens = (
        select(SampleRow.wave_id, func.sum(SampleRow.tokens).label("tokens")).group_by(SampleRow.wave_id).subquery()
    )
    sampled = func.coalesce(tokens.c.tokens, 0)
    cost = (
        (Wave.prompt_tokens - Wave.cached_tokens) * PriceRow.prompt_nanousd
        + Wave.cached_tokens * PriceRow.cached_nanousd
        + sampled * PriceRow.completion_nanousd
    )
    statement = (
        select(Wave.id, Wave.completion_tokens, sampled, Wave.cost_nanousd, cost)
        .join(PriceRow, PriceRow.id == Wave.price_id)
        .outerjoin(tokens, tokens.c.wave_id == Wave.id)
        .where(Wave.state != WaveState.HELD, or_(Wave.completion_tokens != sampled, Wave.cost_nanousd != cost))
    )
    for wave_id, billed, of_samples, booked, recomputed in session.execute(statement):
        where = f"wave {wave_id}"
        if billed != of_samples:
            yield Discrepancy(where=where, what="completion tokens", booked=billed, recomputed=of_samples)
        if booked != recomputed:
            yield Discrepancy(where=where, what="cost in nano-dollars", booked=booked, recomputed=recomputed)


def _waves_against_entries(session: Session) -> Iterator[Discrepancy]:
    """A wave's entries hold what it holds and spent what it cost (corrections aside)."""
    original = Entry.kind != "adjust"
    held = func.coalesce(func.sum(case((original, Entry.held_delta_nanousd), else_=0)), 0)
    spent = func.coalesce(func.sum(case((original, Entry.spent_delta_nanousd), else_=0)), 0)
    still_held = case((Wave.state == WaveState.HELD, Wave.held_nanousd), else_=0)
    statement = (
        select(Wave.id, still_held, Wave.cost_nanousd, held, spent)
        .outerjoin(Entry, Entry.wave_id == Wave.id)
        .group_by(Wave.id, Wave.state, Wave.held_nanousd, Wave.cost_nanousd)
    )
    yield from _compare(session, "wave", statement)


def _orphans(session: Session) -> Iterator[Discrepancy]:
    """Samples that no closed wave paid for."""
    statement = (
        select(func.count(SampleRow.id)).join(Wave, Wave.id == SampleRow.wave_id).where(Wave.state == WaveState.HELD)
    )
    unpaid = session.scalar(statement) or 0
    if unpaid:
        yield Discrepancy(where="samples", what="kept without payment", booked=unpaid, recomputed=0)


def _entry_sums() -> tuple[Any, Any]:
    return (
        func.coalesce(func.sum(Entry.held_delta_nanousd), 0).label("held"),
        func.coalesce(func.sum(Entry.spent_delta_nanousd), 0).label("spent"),
    )
