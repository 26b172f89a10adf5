"""A query that is parked before it asked for money was refused too: the cap that did so is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from models.tables import CapPeriod, Tenant
from scheduler import ledger, thresholds
from scheduler.thresholds import Refusal


def note_unfunded(session: Session, needs_nanousd: Mapping[tuple[str, str], int], now: datetime) -> None:
    """Remember that the tightest cap of each tenant and model had no room for a first wave that needs so much.

    Locks those tenants, so it comes before the caller writes anything else of theirs.
    """
    for (tenant_id, model), need in sorted(needs_nanousd.items()):
        ledger.lock_tenant(session, tenant_id)
        timezone = session.get_one(Tenant, tenant_id).timezone
        periods = [
            (cap.limit_nanousd - period.held_nanousd - period.spent_nanousd, period)
            for cap in ledger.live_caps(session, tenant_id, model)
            for period in [ledger.current_period(session, cap, timezone, now)]
        ]
        left, tightest = min(periods, key=_left, default=(need, None))
        if tightest is not None and left < need and tightest.first_refused_at is None:
            refusal = Refusal(cap_period_id=tightest.id, left_nanousd=left, need_nanousd=need)
            thresholds.note_refusals(session, [refusal], now)


def _left(pair: tuple[int, CapPeriod]) -> int:
    return pair[0]
