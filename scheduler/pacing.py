"""What budgets a window's queries share, how much of each is this window's, and at which price it is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from typing import Any

from sqlalchemy import and_, case, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, Cap, Pace, PlanRow, QueryRow, Tenant
from scheduler.core.pacing import Pace as CorePace
from scheduler.core.periods import BEGINNING, Period, period_bounds
from scheduler.ledger import held_and_spent, live_caps
from scheduler.states import AttemptState, BatchState, QueryState

WAITING_COUNTED = 20_000
"""Waiting queries are counted this far: of more, a budget that could pay them all is none that binds yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purse:
    """A budget that queries share: what it leaves, and its pace as the last window left it.

    What queries that were planned already are expected to cost yet is taken off. What their waves hold would be too
    much, as waves seldom cost all that they may. `query_ids` are those of the window that it pays, and `coming` is how
    many queries it has to last for, these included.
    """

    scope: str
    tenant_id: str
    starts_at: datetime
    left_nanousd: int
    query_ids: frozenset[int]
    coming: int
    pace: CorePace | None

    @property
    def allowance_nanousd(self) -> float:
        """The window's fair part of what is left."""
        return max(0, self.left_nanousd) * len(self.query_ids) / max(self.coming, len(self.query_ids))


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A price to be remembered."""

    scope: str
    tenant_id: str
    starts_at: datetime
    price: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """A query of the window, as far as budgets look at it."""

    query_id: int
    tenant_id: str
    batch_id: str
    model: str


def purses(session: Session, asking: Sequence[Asking], full_nanousd: float, now: datetime) -> list[Purse]:
    """Every cap and every batch limit over the window's queries that could bind.

    `full_nanousd` is what a query of the window is expected to cost with all it can use, on average: a budget that
    leaves as much for every line that its tenant has in the queue is not scarce, and nothing is counted for it.
    """
    planned = cache(partial(_planned, session, frozenset(one.tenant_id for one in asking)))
    found = _caps(session, asking, full_nanousd, planned, now)
    found += _batches(session, asking, planned)
    if not found:
        return []
    paces = {
        (row.scope, row.starts_at): CorePace(price=row.price, windows=row.windows)
        for row in session.execute(
            select(Pace.scope, Pace.starts_at, Pace.price, Pace.windows).where(
                Pace.scope.in_({purse.scope for purse in found})
            )
        )
    }
    return [replace(purse, pace=paces.get((purse.scope, purse.starts_at))) for purse in found]


def remember(session: Session, moves: Iterable[Move], now: datetime) -> None:
    """Write down the prices of a window."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    for move in sorted(moves, key=lambda move: (move.scope, move.starts_at)):
        new = dialect.insert(Pace).values(
            scope=move.scope,
            starts_at=move.starts_at,
            tenant_id=move.tenant_id,
            price=move.price,
            windows=1,
            updated_at=now,
        )
        session.execute(
            new.on_conflict_do_update(
                index_elements=[Pace.scope, Pace.starts_at],
                set_={"price": move.price, "windows": Pace.windows + 1, "updated_at": now},
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What queries that run, or soon will, are expected to cost yet: of one tenant and batch.

    `model` is None where other models may be asked after it: the costs are not that model's alone.
    """

    tenant_id: str
    batch_id: str
    model: str | None
    nanousd: float

    def is_owed_by(self, cap: Cap) -> bool:
        """Whether a cap will have to pay it."""
        return self.tenant_id == cap.tenant_id and cap.model in {None, self.model}


def _planned(session: Session, tenant_ids: Collection[str]) -> list[Planned]:
    is_one_models = QueryRow.models_json.is_(None)  # what several cost is counted from here on, not from the start
    yet = PlanRow.cost_nanousd - case((is_one_models, QueryRow.spent_nanousd), else_=0)
    model = case((PlanRow.escalates.is_(False), PlanRow.model), else_=None)
    statement = (
        select(Attempt.tenant_id, QueryRow.batch_id, model, func.sum(case((yet > 0, yet), else_=0.0)))
        .join(PlanRow, PlanRow.id == Attempt.plan_id)
        .join(QueryRow, QueryRow.id == Attempt.query_id)
        .where(Attempt.state.in_([AttemptState.DISPATCHED, AttemptState.RUNNING]), Attempt.tenant_id.in_(tenant_ids))
        .group_by(Attempt.tenant_id, QueryRow.batch_id, model)
    )
    return [
        Planned(tenant_id=tenant_id, batch_id=batch_id, model=asked, nanousd=float(nanousd))
        for tenant_id, batch_id, asked, nanousd in session.execute(statement)
    ]


def _caps(
    session: Session,
    asking: Sequence[Asking],
    full_nanousd: float,
    planned: Callable[[], Sequence[Planned]],
    now: datetime,
) -> list[Purse]:
    found = []
    for tenant_id in sorted({one.tenant_id for one in asking}):
        timezone = session.get_one(Tenant, tenant_id).timezone
        lines: int | None = None
        for cap in live_caps(session, tenant_id):
            mine = frozenset(
                one.query_id for one in asking if one.tenant_id == tenant_id and cap.model in {None, one.model}
            )
            if not mine:
                continue
            starts_at, ends_at = period_bounds(Period(cap.period), now, timezone)
            _, spent = held_and_spent(session, cap, timezone, now)
            owed = sum(each.nanousd for each in planned() if each.is_owed_by(cap))
            left = cap.limit_nanousd - spent - round(owed)
            later = _arrivals(session, tenant_id, now - (ends_at - starts_at), starts_at) if ends_at else 0
            if lines is None:
                lines = _lines_open(session, tenant_id)
            if left >= full_nanousd * (max(lines, len(mine)) + later):
                coming = max(lines, len(mine)) + later
            else:
                coming = _waiting(session, tenant_id, cap.model) + later
            found.append(
                Purse(
                    scope=cap.id,
                    tenant_id=tenant_id,
                    starts_at=starts_at,
                    left_nanousd=left,
                    query_ids=mine,
                    coming=coming,
                    pace=None,
                )
            )
    return found


def _batches(session: Session, asking: Sequence[Asking], planned: Callable[[], Sequence[Planned]]) -> list[Purse]:
    """The limits of single batches, which have no period."""
    rows = session.execute(
        select(Batch.id, Batch.tenant_id, Batch.limit_nanousd, Batch.spent_nanousd).where(
            Batch.id.in_({one.batch_id for one in asking}), Batch.limit_nanousd.is_not(None)
        )
    ).all()
    found = []
    for row in rows:
        owed = sum(each.nanousd for each in planned() if each.batch_id == row.id)
        waiting = select(QueryRow.id).where(QueryRow.batch_id == row.id, QueryRow.state == QueryState.QUEUED)
        found.append(
            Purse(
                scope=row.id,
                tenant_id=row.tenant_id,
                starts_at=BEGINNING,
                left_nanousd=int(row.limit_nanousd or 0) - row.spent_nanousd - round(owed),
                query_ids=frozenset(one.query_id for one in asking if one.batch_id == row.id),
                coming=_count(session, waiting),
                pace=None,
            )
        )
    return found


def _lines_open(session: Session, tenant_id: str) -> int:
    """No fewer than the tenant's waiting queries: the lines of its batches that have not ended."""
    lines = select(func.sum(Batch.lines_read)).where(
        Batch.tenant_id == tenant_id, Batch.state.in_([BatchState.IN_PROGRESS, BatchState.VALIDATING])
    )
    return int(session.scalar(lines) or 0)  # PostgreSQL adds up to a Decimal


def _waiting(session: Session, tenant_id: str, model: str | None) -> int:
    waits = and_(QueryRow.state == QueryState.QUEUED, QueryRow.tenant_id == tenant_id)
    if model is not None:
        waits = and_(waits, QueryRow.model == model)
    return _count(session, select(QueryRow.id).where(waits))


def _count(session: Session, waiting: Any) -> int:
    """Counted in the index, and no further than it matters."""
    some = waiting.limit(WAITING_COUNTED).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


def _arrivals(session: Session, tenant_id: str, since: datetime, until: datetime) -> int:
    """The lines that came in between the present time of the last period and its end: as many may come again."""
    came = select(func.sum(Batch.lines_read)).where(
        Batch.tenant_id == tenant_id, Batch.created_at > since, Batch.created_at < until
    )
    return int(session.scalar(came) or 0)
