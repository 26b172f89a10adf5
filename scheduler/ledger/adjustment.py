"""How waves that were closed at a mistaken price are put right: entries on top, for nothing is ever edited.

Every step is one statement over all waves of a tenant, so that a long history costs the database time and nobody
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Integer, String, case, cast, func, insert, literal, select, update
from sqlalchemy.orm import Session

from models.tables import Batch, Cap, CapPeriod, Correction, Entry, PriceRow, QueryRow, Tenant, Wave
from scheduler.ledger.periods import counts_to_period
from scheduler.ledger.purses import lock_tenant
from scheduler.states import WaveState


@dataclass(frozen=True, kw_only=True, slots=True)
class Adjusted:
    """What a correction took from a tenant and gave back to it, and in how many waves."""

    waves: int
    charged_nanousd: int
    refunded_nanousd: int


def adjust(session: Session, tenant_id: str, correction: Correction, now: datetime) -> Adjusted:
    """Bring every closed wave that the correction covers to its price. Done twice, the second time moves nothing.

    Waves that are held are settled at that price when they end. The caller wrote the correction in this transaction.
    """
    lock_tenant(session, tenant_id)
    newest = session.scalar(select(func.coalesce(func.max(Entry.id), 0)))
    price = session.get_one(PriceRow, correction.price_id)
    session.execute(_entries(tenant_id, correction, price, now))
    new = (
        Entry.id > newest,
        Entry.tenant_id == tenant_id,
        Entry.kind == "adjust",
        Entry.price_id == price.id,
    )
    delta = Entry.spent_delta_nanousd
    waves, charged, refunded = session.execute(
        select(
            func.count(),
            func.coalesce(func.sum(case((delta > 0, delta), else_=0)), 0),
            func.coalesce(func.sum(case((delta < 0, -delta), else_=0)), 0),
        ).where(*new)
    ).one()
    if waves:
        _move_purses(session, new)
    return Adjusted(waves=waves, charged_nanousd=int(charged), refunded_nanousd=int(refunded))


def _entries(tenant_id: str, correction: Correction, price: PriceRow, now: datetime) -> Any:
    within = [Entry.tenant_id == tenant_id, Entry.model == correction.model, Entry.effective_at >= correction.from_at]
    if correction.to_at is not None:
        within.append(Entry.effective_at < correction.to_at)
    charged = (
        select(Entry.wave_id, func.sum(Entry.spent_delta_nanousd).label("nanousd"))
        .where(*within)
        .group_by(Entry.wave_id)
        .subquery()
    )
    cost = (
        (Wave.prompt_tokens - Wave.cached_tokens) * price.prompt_nanousd
        + Wave.cached_tokens * price.cached_nanousd
        + Wave.completion_tokens * price.completion_nanousd
    )
    values: dict[str, Any] = {
        "key": literal(f"adjust:{price.id}:") + cast(Wave.id, String),
        "kind": literal("adjust"),
        "tenant_id": Wave.tenant_id,
        "batch_id": Wave.batch_id,
        "query_id": Wave.query_id,
        "wave_id": Wave.id,
        "model": Wave.model,
        "price_id": literal(price.id, Integer),
        "held_delta_nanousd": literal(0, Integer),
        "spent_delta_nanousd": cost - charged.c.nanousd,
        "effective_at": Wave.reserved_at,
        "created_at": literal(now, Entry.created_at.type),
        "note": literal(f"correction {correction.id}"),
    }
    rows = (
        select(*values.values())
        .join(charged, charged.c.wave_id == Wave.id)
        .where(Wave.state != WaveState.HELD, cost != charged.c.nanousd)
    )
    return insert(Entry).from_select(list(values), rows)


def _move_purses(session: Session, new: tuple[Any, ...]) -> None:
    spent = func.sum(Entry.spent_delta_nanousd).label("spent")
    owners: tuple[tuple[Any, Any], ...] = (
        (Tenant, select(Entry.tenant_id.label("owner"), spent).where(*new).group_by(Entry.tenant_id)),
        (
            CapPeriod,
            select(CapPeriod.id.label("owner"), spent)
            .select_from(Entry)
            .join(Cap, Cap.tenant_id == Entry.tenant_id)
            .join(CapPeriod, counts_to_period())
            .where(*new, Cap.removed_at.is_(None))
            .group_by(CapPeriod.id),
        ),
        (Batch, select(Entry.batch_id.label("owner"), spent).where(*new).group_by(Entry.batch_id)),
        (QueryRow, select(Entry.query_id.label("owner"), spent).where(*new).group_by(Entry.query_id)),
    )
    for table, sums in owners:
        by_owner = sums.subquery()
        session.execute(
            update(table)
            .where(table.id == by_owner.c.owner)
            .values(spent_nanousd=table.spent_nanousd + by_owner.c.spent)
            .execution_options(synchronize_session=False)
        )
    session.expire_all()
