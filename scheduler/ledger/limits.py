"""What a reservation must fit under: the caps of its tenant, its batch's limit, its query's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, Correction, QueryRow
from scheduler.ledger.periods import name_of, present_periods
from scheduler.ledger.rows import Lookup
from scheduler.ledger.terms import Funded
from scheduler.states import AttemptState


@dataclass(kw_only=True, slots=True)
class Limit:
    """One limit that reservations must fit under, and what it leaves. `turns_at` is when it starts anew, if ever.

    Of what is held under it some comes back, as waves seldom cost all that they may.
    """

    scope: str
    limit_nanousd: int
    left_nanousd: int
    held_nanousd: int
    cap_period_id: int | None = None
    model: str | None = None
    turns_at: datetime | None = None
    taken_nanousd: int = 0

    def may_leave(self, amount_nanousd: int) -> bool:
        """Whether it would leave that much if all came back that is held."""
        return self.left_nanousd + self.held_nanousd + self.taken_nanousd >= amount_nanousd

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
    running: set[tuple[int, str]]
    """The attempts that still run, each with its worker."""
    are_prices_corrected: bool
    """Whether any price was ever put right: the one that a worker was told may then be a mistaken one."""

    def over(self, funded: Funded) -> list[Limit]:
        """Those that this attempt's waves must fit under."""
        own = (self.queries.get(funded.query_id), self.batches.get(funded.batch_id))
        return [cap for cap in self.caps if cap.model in {None, funded.model}] + [one for one in own if one is not None]


def limits_of(session: Session, funded: Sequence[Funded], timezone: str, now: datetime) -> Limits:
    """The limits over attempts of one tenant, whose row must be locked, and whose time zone its lock has told."""
    rows = _ATTEMPTS.rows(session, list({one.attempt_id for one in funded}))
    return Limits(
        caps=tuple(_cap_limits(session, funded[0].tenant_id, timezone, now)),
        batches={row.batch_id: _own("batch", row) for row in rows if row.batch_limit_nanousd is not None},
        queries={row.query_id: _own("query", row) for row in rows if row.query_limit_nanousd is not None},
        batch_states={row.batch_id: row.batch_state for row in rows},
        running={(row.id, row.worker_id) for row in rows if row.state == AttemptState.RUNNING},
        are_prices_corrected=any(row.is_corrected for row in rows),
    )


def _cap_limits(session: Session, tenant_id: str, timezone: str, now: datetime) -> list[Limit]:
    return [
        Limit(
            scope=name_of(cap),
            limit_nanousd=cap.limit_nanousd,
            left_nanousd=cap.limit_nanousd - cap.held_nanousd - cap.spent_nanousd,
            held_nanousd=cap.held_nanousd,
            cap_period_id=cap.cap_period_id,
            model=cap.model,
            turns_at=cap.ends_at,
        )
        for cap in present_periods(session, tenant_id, timezone, now)
    ]


def _own(scope: str, row: Any) -> Limit:
    limit, held, spent = (getattr(row, f"{scope}_{name}_nanousd") for name in ("limit", "held", "spent"))
    return Limit(scope=scope, limit_nanousd=limit, left_nanousd=limit - held - spent, held_nanousd=held)


def _purse(table: type[Batch] | type[QueryRow], scope: str) -> list[Any]:
    names = ("limit_nanousd", "held_nanousd", "spent_nanousd")
    return [getattr(table, name).label(f"{scope}_{name}") for name in names]


# Locked, so that no attempt is taken from its worker before the commit.
_ATTEMPTS = Lookup(
    lambda named: (
        select(
            Attempt.id,
            Attempt.state,
            Attempt.worker_id,
            QueryRow.id.label("query_id"),
            *_purse(QueryRow, "query"),
            Batch.id.label("batch_id"),
            Batch.state.label("batch_state"),
            *_purse(Batch, "batch"),
            select(Correction.id).exists().label("is_corrected"),
        )
        .join(QueryRow, QueryRow.id == Attempt.query_id)
        .join(Batch, Batch.id == QueryRow.batch_id)
        .where(named(Attempt.id))
        .order_by(Attempt.id)
        .with_for_update(of=Attempt)
    )
)
