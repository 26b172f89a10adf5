"""Which caps a tenant has, and which of their periods money counts to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, case, or_, select
from sqlalchemy.orm import Session

from models.tables import Cap, CapPeriod, Entry, Tenant
from scheduler.core.periods import Period, period_bounds


def live_caps(session: Session, tenant_id: str, model: str | None = None) -> Sequence[Cap]:
    """The caps in force for a tenant (and, where a model is named, for that model)."""
    caps = session.scalars(_LIVE_CAPS, {"tenant_id": tenant_id}, execution_options={"populate_existing": True}).all()
    return [cap for cap in caps if model is None or cap.model in {None, model}]


def current_period(session: Session, cap: Cap, timezone: str, now: datetime) -> CapPeriod:
    """The row of the cap's present period, made on first use (the tenant's row must be locked)."""
    starts_at, ends_at = period_bounds(Period(cap.period), now, timezone)
    period = session.scalars(
        _PERIOD, {"cap_id": cap.id, "starts_at": starts_at}, execution_options={"populate_existing": True}
    ).first()
    return period or _begin(session, cap.id, starts_at, ends_at)


def present_periods(session: Session, tenant_id: str, timezone: str, now: datetime) -> Sequence[Any]:
    """Every cap in force with its present period, which is made on first use; the tenant's row must be locked."""
    bounds = {period.value: period_bounds(period, now, timezone) for period in Period}
    parameters = {"tenant_id": tenant_id, **{f"{period}_starts_at": start for period, (start, _) in bounds.items()}}
    caps = session.connection().execute(_PRESENT, parameters).all()
    missing = [cap for cap in caps if cap.cap_period_id is None]
    for cap in missing:
        _begin(session, cap.id, *bounds[cap.period])
    return session.connection().execute(_PRESENT, parameters).all() if missing else caps


def left_under(session: Session, cap: Cap, timezone: str, now: datetime) -> int:
    """What a cap leaves in its present period, without locking or making anything."""
    held, spent = held_and_spent(session, cap, timezone, now)
    return cap.limit_nanousd - held - spent


def held_and_spent(session: Session, cap: Cap, timezone: str, now: datetime) -> tuple[int, int]:
    """What waves hold of a cap in its present period, and what was spent."""
    starts_at, _ = period_bounds(Period(cap.period), now, timezone)
    period = session.scalars(_PERIOD, {"cap_id": cap.id, "starts_at": starts_at}).first()
    return (period.held_nanousd, period.spent_nanousd) if period is not None else (0, 0)


def tightest_cap(session: Session, tenant_id: str, model: str, now: datetime) -> tuple[int, str] | None:
    """What the tightest of a tenant's caps leaves in nano-dollars, and its name; None without caps."""
    timezone = session.get_one(Tenant, tenant_id).timezone
    leaves = []
    for cap in live_caps(session, tenant_id, model):
        leaves.append((left_under(session, cap, timezone, now), name_of(cap)))
    return min(leaves, default=None)


def name_of(cap: Cap) -> str:
    """How a cap is named to people."""
    on_model = f" on {cap.model}" if cap.model else ""
    return f"cap {cap.id} ({cap.period}{on_model})"


def cap_moves(session: Session, moves: Sequence[tuple[Any, int, int]]) -> tuple[list[tuple[int, int, int]], set[int]]:
    """Each wave moves the money of the periods in which it was reserved, of all caps that are in force now.

    Returns those moves, and the ids of those of the periods whose soft limit may be crossed by them.
    """
    tenant_id = moves[0][0].tenant_id
    instants = [wave.reserved_at for wave, _, _ in moves]
    between = {"tenant_id": tenant_id, "first": min(instants), "last": max(instants)}
    periods = session.connection().execute(_PERIODS_BETWEEN, between).all()
    of_caps = [
        (period.id, held, cost)
        for period in periods
        for wave, held, cost in moves
        if period.model in {None, wave.model} and _is_within(period, wave.reserved_at)
    ]
    return of_caps, {period.id for period in periods if period.is_watched}


def counts_to_period() -> Any:
    """Whether an entry counts to a period of a cap, as part of a statement: of that tenant, model and time."""
    return and_(
        CapPeriod.cap_id == Cap.id,
        Entry.tenant_id == Cap.tenant_id,
        or_(Cap.model.is_(None), Entry.model == Cap.model),
        Entry.effective_at >= CapPeriod.starts_at,
        or_(CapPeriod.ends_at.is_(None), Entry.effective_at < CapPeriod.ends_at),
    )


def _begin(session: Session, cap_id: str, starts_at: datetime, ends_at: datetime | None) -> CapPeriod:
    period = CapPeriod(cap_id=cap_id, starts_at=starts_at, ends_at=ends_at, held_nanousd=0, spent_nanousd=0)
    session.add(period)
    session.flush()
    return period


def _is_within(period: Any, instant: datetime) -> bool:
    return bool(period.starts_at <= instant and (period.ends_at is None or instant < period.ends_at))


# Statements are built once: building one costs more than running it.
_LIVE_CAPS = (
    select(Cap)
    .where(Cap.tenant_id == bindparam("tenant_id"), Cap.removed_at.is_(None))
    .order_by(Cap.created_at, Cap.id)
)
_PERIOD = select(CapPeriod).where(
    CapPeriod.cap_id == bindparam("cap_id"), CapPeriod.starts_at == bindparam("starts_at")
)
_STARTS_AT: Any = case(
    *(
        (Cap.period == period.value, bindparam(f"{period.value}_starts_at", type_=CapPeriod.starts_at.type))
        for period in Period
    )
)
_PRESENT = (
    select(
        Cap.id,
        Cap.period,
        Cap.model,
        Cap.limit_nanousd,
        CapPeriod.id.label("cap_period_id"),
        CapPeriod.ends_at,
        CapPeriod.held_nanousd,
        CapPeriod.spent_nanousd,
    )
    .outerjoin(CapPeriod, and_(CapPeriod.cap_id == Cap.id, CapPeriod.starts_at == _STARTS_AT))
    .where(Cap.tenant_id == bindparam("tenant_id"), Cap.removed_at.is_(None))
    .order_by(Cap.created_at, Cap.id)
)
_PERIODS_BETWEEN = (
    select(
        CapPeriod.id,
        CapPeriod.starts_at,
        CapPeriod.ends_at,
        Cap.model,
        and_(Cap.soft_fraction.is_not(None), CapPeriod.soft_alerted_at.is_(None)).label("is_watched"),
    )
    .join(Cap, Cap.id == CapPeriod.cap_id)
    .where(
        Cap.tenant_id == bindparam("tenant_id"),
        Cap.removed_at.is_(None),
        CapPeriod.starts_at <= bindparam("last"),
        or_(CapPeriod.ends_at.is_(None), CapPeriod.ends_at > bindparam("first")),
    )
    .order_by(CapPeriod.id)
)
