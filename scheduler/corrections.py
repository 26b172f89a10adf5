"""A price that was mistaken: what a model's tokens cost after all, and who pays or gets back how much."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from models.tables import Batch, Cap, CapPeriod, Correction, Entry, PriceRow, QueryRow, Tenant
from scheduler.errors import InvalidRequest, ModelUnpriced
from scheduler.ledger.adjustment import Adjusted, adjust
from scheduler.ledger.periods import name_of
from scheduler.thresholds import note_spending

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPrice:
    """What tokens cost after all, in nano-dollars per token."""

    prompt_nanousd: int
    cached_nanousd: int
    completion_nanousd: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """A limit that a correction has taken what was spent over: no new wave starts under it."""

    scope: str
    limit_nanousd: int
    used_nanousd: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantCorrection:
    """What a correction means for one tenant."""

    tenant_id: str
    tenant_name: str
    adjusted: Adjusted
    exceeded: tuple[Excess, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionReport:
    """What a correction did or, where `is_dry_run`, would do. `to_at` is None where the price holds from now on."""

    model: str
    price: NewPrice
    from_at: datetime
    to_at: datetime | None
    price_id: int | None
    is_dry_run: bool
    tenants: tuple[TenantCorrection, ...]


def correct_price(
    session: Session,
    model: str,
    price: NewPrice,
    *,
    from_at: datetime,
    to_at: datetime | None = None,
    is_dry_run: bool = False,
    now: datetime,
) -> CorrectionReport:
    """Bring everything that a model's tokens cost between two instants to another price, by entries on top.

    Without an end the price also holds from now on, until a newer one begins. What is held in between is settled at it.
    The same correction asked for twice is made once. What an upward correction takes over a limit is booked all the
    same, reported and alerted: the tokens were made.
    """
    _check(session, model, from_at, to_at, now)
    if is_dry_run:
        with session.begin_nested() as tried:
            report = _corrected(session, model, price, from_at, to_at, now, is_dry_run=True)
            tried.rollback()
        session.expire_all()
        return report
    report = _corrected(session, model, price, from_at, to_at, now, is_dry_run=False)
    for one in report.tenants:
        log.info("price_corrected", model=model, tenant=one.tenant_id, waves=one.adjusted.waves)
        for excess in one.exceeded:
            log.warning(
                "limit_exceeded_by_correction", scope=excess.scope, limit=excess.limit_nanousd, used=excess.used_nanousd
            )
    return report


def _corrected(
    session: Session,
    model: str,
    price: NewPrice,
    from_at: datetime,
    to_at: datetime | None,
    now: datetime,
    *,
    is_dry_run: bool,
) -> CorrectionReport:
    correction = _correction(session, model, price, from_at, to_at, now)
    tenants = []
    for tenant in _concerned(session, correction):
        adjusted = adjust(session, tenant.id, correction, now)
        if adjusted.waves:
            exceeded = _exceeded(session, tenant.id, correction, now) if adjusted.charged_nanousd else ()
            one = TenantCorrection(tenant_id=tenant.id, tenant_name=tenant.name, adjusted=adjusted, exceeded=exceeded)
            tenants.append(one)
    return CorrectionReport(
        model=model,
        price=price,
        from_at=from_at,
        to_at=correction.to_at,
        price_id=None if is_dry_run else correction.price_id,
        is_dry_run=is_dry_run,
        tenants=tuple(tenants),
    )


def _check(session: Session, model: str, from_at: datetime, to_at: datetime | None, now: datetime) -> None:
    if from_at > now:
        raise InvalidRequest(
            f"A correction is of the past, and {from_at.isoformat()} is to come; "
            f"`allotd price set {model} --from` sets what tokens will cost.",
            param="from",
        )
    if to_at is not None and not from_at < to_at <= now:
        raise InvalidRequest(
            "A correction ends after it begins and not in the future; without an end its price holds from now on.",
            param="to",
        )
    known = select(PriceRow.id).where(PriceRow.model == model).limit(1)
    if session.scalar(known) is None:
        raise ModelUnpriced(f"Model '{model}' never had a price, so there is nothing to correct.", param="model")


def _correction(
    session: Session, model: str, price: NewPrice, from_at: datetime, to_at: datetime | None, now: datetime
) -> Correction:
    """The newest correction of the model where it says the same already, else another one."""
    if to_at is None:
        begin = select(PriceRow.effective_at).where(PriceRow.model == model, PriceRow.effective_at > now)
        ends_at = session.scalar(begin.order_by(PriceRow.effective_at).limit(1))
    else:
        ends_at = to_at
    newest = session.execute(
        select(Correction, PriceRow)
        .join(PriceRow, PriceRow.id == Correction.price_id)
        .where(Correction.model == model)
        .order_by(Correction.id.desc())
        .limit(1)
    ).first()
    if newest is not None:
        correction, row = newest
        same = (row.prompt_nanousd, row.cached_nanousd, row.completion_nanousd) == (
            price.prompt_nanousd,
            price.cached_nanousd,
            price.completion_nanousd,
        )
        if same and (correction.from_at, correction.to_at) == (from_at, ends_at):
            return correction
    row = PriceRow(
        model=model,
        effective_at=now if to_at is None else from_at,
        ends_at=to_at,
        prompt_nanousd=price.prompt_nanousd,
        cached_nanousd=price.cached_nanousd,
        completion_nanousd=price.completion_nanousd,
        created_at=now,
    )
    session.add(row)
    session.flush()
    correction = Correction(model=model, price_id=row.id, from_at=from_at, to_at=ends_at, created_at=now)
    session.add(correction)
    session.flush()
    return correction


def _concerned(session: Session, correction: Correction) -> list[Tenant]:
    """Tenants with entries that the correction covers, in the order in which everybody locks them."""
    within = [
        Entry.tenant_id == Tenant.id,
        Entry.model == correction.model,
        Entry.effective_at >= correction.from_at,
    ]
    if correction.to_at is not None:
        within.append(Entry.effective_at < correction.to_at)
    some = select(Entry.id).where(*within).correlate(Tenant).exists()
    return list(session.scalars(select(Tenant).where(some).order_by(Tenant.id)))


def _exceeded(session: Session, tenant_id: str, correction: Correction, now: datetime) -> tuple[Excess, ...]:
    """The tenant's limits that more is spent and held under than they allow, of periods that the correction covers."""
    covered = [or_(CapPeriod.ends_at.is_(None), CapPeriod.ends_at > correction.from_at)]
    if correction.to_at is not None:
        covered.append(CapPeriod.starts_at < correction.to_at)
    periods = session.execute(
        select(Cap, CapPeriod)
        .join(CapPeriod, CapPeriod.cap_id == Cap.id)
        .where(
            Cap.tenant_id == tenant_id,
            Cap.removed_at.is_(None),
            or_(Cap.model.is_(None), Cap.model == correction.model),
            *covered,
        )
        .order_by(CapPeriod.id)
    ).all()
    note_spending(session, [period.id for _, period in periods if period.ends_at is None or period.ends_at > now], now)
    found = [
        Excess(
            scope=f"{name_of(cap)} from {period.starts_at:%Y-%m-%d}",
            limit_nanousd=cap.limit_nanousd,
            used_nanousd=period.spent_nanousd + period.held_nanousd,
        )
        for cap, period in periods
        if period.spent_nanousd + period.held_nanousd > cap.limit_nanousd
    ]
    own: tuple[tuple[Any, str], ...] = ((Batch, "batch"), (QueryRow, "query"))
    for table, name in own:
        over = select(table).where(
            table.tenant_id == tenant_id, table.spent_nanousd + table.held_nanousd > table.limit_nanousd
        )
        found += [
            Excess(
                scope=f"{name} {row.id}",
                limit_nanousd=row.limit_nanousd or 0,
                used_nanousd=row.spent_nanousd + row.held_nanousd,
            )
            for row in session.scalars(over.order_by(table.id).limit(EXCESSES_MAX))
        ]
    return tuple(found)


EXCESSES_MAX = 100
"""Batches and queries over their own limits that are named."""
