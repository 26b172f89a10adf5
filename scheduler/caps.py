"""How much a tenant may spend per period, and how much of it is left."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Cap, CapPeriod, Entry, PriceRow, Tenant
from scheduler.core.periods import Period, period_bounds
from scheduler.errors import InvalidRequest, ModelUnpriced, NotFound
from scheduler.ledger import current_period, live_caps, lock_tenant, price_at
from scheduler.thresholds import note_spending


@dataclass(frozen=True, kw_only=True, slots=True)
class CapStatus:
    """A cap and its present period. `left_nanousd` is below zero where a cap was lowered under what it had let pass."""

    id: str
    tenant_id: str
    tenant_name: str
    model: str | None
    period: Period
    limit_nanousd: int
    spent_nanousd: int
    held_nanousd: int
    turns_at: datetime | None
    timezone: str
    soft: float | None
    soft_alerted_at: datetime | None
    first_refused_at: datetime | None
    phantom_block_nanousd: int | None
    """What was neither spent nor held when a query was first refused in this period: less than its smallest wave."""
    held_at_refusal_nanousd: int | None

    @property
    def left_nanousd(self) -> int:
        """What is neither spent nor held."""
        return self.limit_nanousd - self.spent_nanousd - self.held_nanousd


def set_cap(
    session: Session,
    tenant: Tenant,
    *,
    limit_nanousd: int,
    period: Period,
    model: str | None = None,
    soft: float | None = None,
    no_soft: bool = False,
    now: datetime,
) -> CapStatus:
    """Limit what a tenant spends per period, on all models or on one; an existing limit of that kind is changed.

    A soft limit stays as it is unless `soft` changes it or `no_soft` removes it.
    A cap counts everything the tenant has spent and holds in its present period, also what came before the cap.
    Lowering it under that stops new waves only. Raises ModelUnpriced where spending could not be measured.
    """
    lock_tenant(session, tenant.id)  # first, as the ledger does: no money moves between counting and the new row
    _check_priced(session, model, now)
    if soft is not None and no_soft:
        raise InvalidRequest("A soft limit cannot be set and removed at once; leave one of the two out.", param="soft")
    if soft is not None and not 0 < soft <= 1:
        raise InvalidRequest("The soft limit is a share of the cap: more than 0 and at most 1.", param="soft")
    cap = session.scalars(
        select(Cap)
        .where(
            Cap.tenant_id == tenant.id,
            Cap.period == period,
            Cap.removed_at.is_(None),
            Cap.model.is_(None) if model is None else Cap.model == model,
        )
        .execution_options(populate_existing=True)
    ).first()
    if cap is None:
        cap = _create(session, tenant, limit_nanousd, period, model, soft, now)
    else:
        cap.limit_nanousd = limit_nanousd
        cap.soft_fraction = None if no_soft else soft if soft is not None else cap.soft_fraction
        session.flush()
    note_spending(session, [current_period(session, cap, tenant.timezone, now).id], now)
    return _statuses(session, [Cap.id == cap.id], now)[0]


def list_caps(session: Session, tenant_id: str | None, now: datetime) -> list[CapStatus]:
    """The caps in force of a tenant, or of all where none is named, with what their present period leaves."""
    return _statuses(session, [] if tenant_id is None else [Cap.tenant_id == tenant_id], now)


def change_timezone(session: Session, tenant: Tenant, timezone: str, now: datetime) -> None:
    """Let a tenant's days, weeks and months turn in another time zone.

    The present period of each cap becomes the one that the new zone's clocks are in. It counts what the ledger says was
    spent and is held since it began: nothing is forgotten that the new period holds, nothing is counted twice. What
    was spent before the new period's beginning belongs to the one before.
    """
    lock_tenant(session, tenant.id)
    session.refresh(tenant)
    newest = _newest_entry_after(session, tenant.id, now)
    for cap in live_caps(session, tenant.id):
        if cap.period != Period.TOTAL:
            _recut(session, cap, tenant.timezone, timezone, now, newest)
    session.execute(update(Tenant).where(Tenant.id == tenant.id).values(timezone=timezone))
    session.refresh(tenant)


def remove_cap(session: Session, cap_id: str, now: datetime) -> None:
    """Lift a cap. What it counted stays in the ledger, so a cap set again later counts it too. Raises NotFound."""
    cap = session.get(Cap, cap_id)
    if cap is None or cap.removed_at is not None:
        raise NotFound(f"There is no cap '{cap_id}'.", param="cap_id")
    lock_tenant(session, cap.tenant_id)
    session.execute(update(Cap).where(Cap.id == cap_id, Cap.removed_at.is_(None)).values(removed_at=now))


def _check_priced(session: Session, model: str | None, now: datetime) -> None:
    if model is not None:
        price_at(session, model, now)
    elif session.scalars(select(PriceRow.id).where(PriceRow.effective_at <= now).limit(1)).first() is None:
        raise ModelUnpriced(
            "No model has a price, so spending cannot be limited; set one with "
            "`allotd price set MODEL --prompt USD_PER_MTOK --completion USD_PER_MTOK`."
        )


def _create(
    session: Session,
    tenant: Tenant,
    limit_nanousd: int,
    period: Period,
    model: str | None,
    soft: float | None,
    now: datetime,
) -> Cap:
    cap = Cap(
        id=f"cap_{secrets.token_hex(6)}",
        tenant_id=tenant.id,
        model=model,
        period=period,
        limit_nanousd=limit_nanousd,
        soft_fraction=soft,
        created_at=now,
    )
    session.add(cap)
    session.flush()
    for starts_at, ends_at in _periods_begun(session, tenant, period, now):
        spent, held = _counted(session, tenant.id, model, starts_at, ends_at)
        session.add(
            CapPeriod(cap_id=cap.id, starts_at=starts_at, ends_at=ends_at, spent_nanousd=spent, held_nanousd=held)
        )
    session.flush()
    return cap


def _periods_begun(
    session: Session, tenant: Tenant, period: Period, now: datetime
) -> set[tuple[datetime, datetime | None]]:
    """The present period, and that of the newest entry where another host's clock is past the turn already.

    Earlier periods need no row: a wave held since before the turn belongs to the period it was reserved in, which no
    reservation will look at again. Later ones are made by the ledger, before any entry falls into them.
    """
    newest = _newest_entry_after(session, tenant.id, now)
    return {period_bounds(period, instant, tenant.timezone) for instant in (now, newest) if instant is not None}


def _newest_entry_after(session: Session, tenant_id: str, now: datetime) -> datetime | None:
    return session.scalar(
        select(func.max(Entry.effective_at)).where(Entry.tenant_id == tenant_id, Entry.effective_at > now)
    )


def _recut(session: Session, cap: Cap, old: str, new: str, now: datetime, newest: datetime | None) -> None:
    """Give a cap's present period the new zone's bounds, and count it again from the ledger.

    So too the period before it and the one of the newest entry: a worker whose clock is a little behind or ahead
    reserves in those, and what is reserved in a period must be there when it is released. Rows that would overlap
    these go; the ledger has all that they counted.
    """
    period = Period(cap.period)
    present, _ = period_bounds(period, now, new)
    instants = [now, present - timedelta(microseconds=1), *([newest] if newest is not None else [])]
    wanted = {period_bounds(period, instant, new): instant for instant in reversed(instants)}
    first = min(starts_at for starts_at, _ in wanted)
    rows = {
        row.starts_at: row
        for row in session.scalars(select(CapPeriod).where(CapPeriod.cap_id == cap.id, CapPeriod.ends_at > first))
    }
    chosen = {bounds: rows.pop(bounds[0]) for bounds in wanted if bounds[0] in rows}
    for bounds, instant in sorted(wanted.items(), key=lambda item: item[1] != now):
        # The row itself moves on, so that what was alerted of this period is not alerted again.
        row = chosen.get(bounds) or rows.pop(period_bounds(period, instant, old)[0], None)
        chosen[bounds] = row or CapPeriod(cap_id=cap.id)
    for row in rows.values():
        session.delete(row)
    session.flush()
    for (starts_at, ends_at), row in chosen.items():
        row.starts_at, row.ends_at = starts_at, ends_at
        row.spent_nanousd, row.held_nanousd = _counted(session, cap.tenant_id, cap.model, starts_at, ends_at)
        session.add(row)
        session.flush()


def _counted(
    session: Session, tenant_id: str, model: str | None, starts_at: datetime, ends_at: datetime | None
) -> tuple[int, int]:
    """What the ledger says was spent and is held in a period: entries count to the instant of their reservation."""
    conditions = [Entry.tenant_id == tenant_id, Entry.effective_at >= starts_at]
    if ends_at is not None:
        conditions.append(Entry.effective_at < ends_at)
    if model is not None:
        conditions.append(Entry.model == model)
    spent, held = session.execute(
        select(func.sum(Entry.spent_delta_nanousd), func.sum(Entry.held_delta_nanousd)).where(*conditions)
    ).one()
    return int(spent or 0), int(held or 0)


def _statuses(session: Session, conditions: Sequence[Any], now: datetime) -> list[CapStatus]:
    present = and_(
        CapPeriod.cap_id == Cap.id,
        CapPeriod.starts_at <= now,
        or_(CapPeriod.ends_at.is_(None), CapPeriod.ends_at > now),
    )
    rows = session.execute(
        select(
            Cap.id,
            Cap.tenant_id,
            Tenant.name,
            Tenant.timezone,
            Cap.model,
            Cap.period,
            Cap.limit_nanousd,
            Cap.soft_fraction,
            CapPeriod.spent_nanousd,
            CapPeriod.held_nanousd,
            CapPeriod.soft_alerted_at,
            CapPeriod.first_refused_at,
            CapPeriod.unspent_at_refusal_nanousd,
            CapPeriod.held_at_refusal_nanousd,
        )
        .join(Tenant, Tenant.id == Cap.tenant_id)
        .outerjoin(CapPeriod, present)
        .where(Cap.removed_at.is_(None), *conditions)
        .order_by(Tenant.name, Cap.created_at, Cap.id)
    )
    return [
        CapStatus(
            id=row.id,
            tenant_id=row.tenant_id,
            tenant_name=row.name,
            model=row.model,
            period=Period(row.period),
            limit_nanousd=row.limit_nanousd,
            spent_nanousd=row.spent_nanousd or 0,
            held_nanousd=row.held_nanousd or 0,
            turns_at=period_bounds(Period(row.period), now, row.timezone)[1],
            timezone=row.timezone,
            soft=row.soft_fraction,
            soft_alerted_at=row.soft_alerted_at,
            first_refused_at=row.first_refused_at,
            phantom_block_nanousd=row.unspent_at_refusal_nanousd,
            held_at_refusal_nanousd=row.held_at_refusal_nanousd,
        )
        for row in rows
    ]
