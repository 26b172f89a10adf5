"""What a reservation must fit under: the caps of its tenant, its batch's limit, its query's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import Batch, QueryRow
from scheduler.ledger.periods import current_period, live_caps, name_of
from scheduler.ledger.terms import Funded


@dataclass(kw_only=True, slots=True)
class Limit:
    """One limit that reservations must fit under, and what it leaves. `turns_at` is when it starts anew, if ever."""

    scope: str
    limit_nanousd: int
    left_nanousd: int
    cap_period_id: int | None = None
    model: str | None = None
    turns_at: datetime | None = None
    taken_nanousd: int = 0

    def take(self, amount_nanousd: int) -> None:
        """Leave that much less to the next wave."""
        self.left_nanousd -= amount_nanousd
        self.taken_nanousd += amount_nanousd


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Every limit of some waves of one tenant, read once; and the states of their batches."""

    caps: tuple[Limit, ...]
    batches: dict[str, Limit]
    queries: dict[int, Limit]
    batch_states: dict[str, str]

    def over(self, funded: Funded) -> list[Limit]:
        """Those that this attempt's waves must fit under."""
        own = (self.queries.get(funded.query_id), self.batches.get(funded.batch_id))
        return [cap for cap in self.caps if cap.model in {None, funded.model}] + [one for one in own if one is not None]


def limits_of(session: Session, funded: Sequence[Funded], timezone: str, now: datetime) -> Limits:
    """The limits over attempts of one tenant, whose row must be locked, and whose time zone its lock has told."""
    states, batches = _batch_limits(session, {one.batch_id for one in funded})
    return Limits(
        caps=tuple(_cap_limits(session, funded[0].tenant_id, timezone, now)),
        batches=batches,
        queries=_query_limits(session, {one.query_id for one in funded}),
        batch_states=states,
    )


def _cap_limits(session: Session, tenant_id: str, timezone: str, now: datetime) -> list[Limit]:
    limits = []
    for cap in live_caps(session, tenant_id):
        period = current_period(session, cap, timezone, now)
        limits.append(
            Limit(
                scope=name_of(cap),
                limit_nanousd=cap.limit_nanousd,
                left_nanousd=cap.limit_nanousd - period.held_nanousd - period.spent_nanousd,
                cap_period_id=period.id,
                model=cap.model,
                turns_at=period.ends_at,
            )
        )
    return limits


def _batch_limits(session: Session, batch_ids: set[str]) -> tuple[dict[str, str], dict[str, Limit]]:
    """The state of each batch, and the limits of those that have one."""
    rows = session.execute(
        select(Batch.id, Batch.state, Batch.limit_nanousd, Batch.held_nanousd, Batch.spent_nanousd).where(
            Batch.id.in_(batch_ids)
        )
    ).all()
    return {row.id: row.state for row in rows}, {row.id: _limit("batch", row) for row in rows if _is_limited(row)}


def _query_limits(session: Session, query_ids: set[int]) -> dict[int, Limit]:
    rows = session.execute(
        select(QueryRow.id, QueryRow.limit_nanousd, QueryRow.held_nanousd, QueryRow.spent_nanousd).where(
            QueryRow.id.in_(query_ids), QueryRow.limit_nanousd.is_not(None)
        )
    )
    return {row.id: _limit("query", row) for row in rows}


def _is_limited(row: Any) -> bool:
    return row.limit_nanousd is not None


def _limit(scope: str, row: Any) -> Limit:
    left = row.limit_nanousd - row.held_nanousd - row.spent_nanousd
    return Limit(scope=scope, limit_nanousd=row.limit_nanousd, left_nanousd=left)
