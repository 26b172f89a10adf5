"""When a cap's soft limit is crossed, and when the cap first refuses: noticed once per period, and told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import Cap, CapPeriod, Tenant
from scheduler.alerts import raise_alert
from scheduler.core.pricing import format_usd
from scheduler.types import AlertKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A wave that a cap's period had no room for: what was left, and what the smallest wave would have needed."""

    cap_period_id: int
    left_nanousd: int
    need_nanousd: int


def soft_nanousd(soft: float, limit_nanousd: int) -> int:
    """The amount at which a soft limit is crossed."""
    return ceil(soft * limit_nanousd)


def note_spending(session: Session, cap_period_ids: Iterable[int], now: datetime) -> None:
    """Tell of each of these periods in which more is spent than its cap's soft limit, once a period.

    The caller has just moved money in them, or their limit, and holds the tenant's lock.
    """
    ids = set(cap_period_ids)
    if not ids:
        return
    unalerted = _periods(ids).where(Cap.soft_fraction.is_not(None), CapPeriod.soft_alerted_at.is_(None))
    for row in session.execute(unalerted).all():
        if row.spent_nanousd < soft_nanousd(row.soft_fraction, row.limit_nanousd):
            continue
        session.execute(update(CapPeriod).where(CapPeriod.id == row.id).values(soft_alerted_at=now))
        raise_alert(
            session,
            AlertKind.CAP_SOFT,
            row.cap_id,
            message=(
                f"{row.tenant_name} has spent {format_usd(row.spent_nanousd)} of the {format_usd(row.limit_nanousd)} "
                f"that {_cap(row)} allows, which is past its soft limit of {row.soft_fraction:.0%}."
            ),
            now=now,
            period=row.starts_at.isoformat(),
            tenant_id=row.tenant_id,
            details=_details(row) | {"soft": row.soft_fraction},
        )


def note_refusals(session: Session, refusals: Iterable[Refusal], now: datetime) -> None:
    """Remember the first refusal of each period, with what was unspent then, and tell of it.

    The caller holds the tenant's lock, and has changed no spent amount since it refused.
    """
    first: dict[int, Refusal] = {}
    for refusal in refusals:
        first.setdefault(refusal.cap_period_id, refusal)
    if not first:
        return
    for row in session.execute(_periods(set(first)).where(CapPeriod.first_refused_at.is_(None))).all():
        refusal = first[row.id]
        left = max(0, refusal.left_nanousd)  # a cap lowered under what it had let pass leaves less than nothing
        held = max(0, row.limit_nanousd - row.spent_nanousd - refusal.left_nanousd)
        session.execute(
            update(CapPeriod)
            .where(CapPeriod.id == row.id, CapPeriod.first_refused_at.is_(None))
            .values(first_refused_at=now, unspent_at_refusal_nanousd=left, held_at_refusal_nanousd=held)
        )
        raise_alert(
            session,
            AlertKind.CAP_REACHED,
            row.cap_id,
            message=(
                f"{row.tenant_name} has reached {_cap(row)}: of {format_usd(row.limit_nanousd)}, "
                f"{format_usd(row.spent_nanousd)} are spent and {format_usd(held)} held, and the {format_usd(left)} "
                f"left are less than the {format_usd(refusal.need_nanousd)} that the smallest wave may cost. "
                f"What does not fit waits until the cap is raised or its period turns."
            ),
            now=now,
            period=row.starts_at.isoformat(),
            tenant_id=row.tenant_id,
            details=_details(row)
            | {
                "held_nanousd": held,
                "phantom_block_nanousd": left,
                "need_nanousd": refusal.need_nanousd,
            },
        )


def _periods(ids: set[int]) -> Any:
    return (
        select(
            CapPeriod.id,
            CapPeriod.cap_id,
            CapPeriod.starts_at,
            CapPeriod.ends_at,
            CapPeriod.spent_nanousd,
            Cap.limit_nanousd,
            Cap.soft_fraction,
            Cap.period,
            Cap.model,
            Tenant.id.label("tenant_id"),
            Tenant.name.label("tenant_name"),
        )
        .join(Cap, Cap.id == CapPeriod.cap_id)
        .join(Tenant, Tenant.id == Cap.tenant_id)
        .where(CapPeriod.id.in_(ids), Cap.removed_at.is_(None))
        .order_by(CapPeriod.id)
    )


def _cap(row: Any) -> str:
    on_model = f" on {row.model}" if row.model else ""
    per = "its total cap" if row.period == "total" else f"its cap per {row.period}"
    return f"{per}{on_model}"


def _details(row: Any) -> dict[str, Any]:
    return {
        "cap_id": row.cap_id,
        "tenant": row.tenant_name,
        "model": row.model,
        "period": row.period,
        "period_starts_at": row.starts_at.isoformat(),
        "period_ends_at": row.ends_at.isoformat() if row.ends_at is not None else None,
        "limit_nanousd": row.limit_nanousd,
        "spent_nanousd": row.spent_nanousd,
    }
