"""How balances move: tenants, cap periods, batches and queries, each only from where it is expected to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import CursorResult, Update, bindparam, or_, update
from sqlalchemy.orm import Session

from models.tables import Batch, CapPeriod, QueryRow, Tenant
from scheduler.errors import NotFound, SchedulerError


def lock_tenant(session: Session, tenant_id: str) -> str:
    """Make every other write of this tenant's money wait for the end of this transaction; returns its time zone."""
    # A write that changes nothing takes the row's lock in one round trip on PostgreSQL and costs nothing on SQLite,
    # whose transactions are alone already.
    timezone: str | None = session.connection().scalar(_LOCK_TENANT, {"key": tenant_id})
    if timezone is None:
        raise NotFound(f"There is no tenant '{tenant_id}'.")
    return timezone


def move(session: Session, statement: Update, moves: Iterable[tuple[Any, int, int]]) -> None:
    """Release and spend, summed per row."""
    held: Counter[Any] = Counter()
    spent: Counter[Any] = Counter()
    for key, release, cost in moves:
        held[key] += release
        spent[key] += cost
    must_change(session, statement, [{"key": k, "held": -held[k], "spent": spent[k]} for k in sorted(held)])


def must_change(session: Session, statement: Update, parameters: Sequence[dict[str, Any]]) -> None:
    """Run a conditional UPDATE for each set of parameters; every one must find its row as it expects it.

    The tenant's lock makes that so. Where it is not, the transaction is undone rather than the books bent.
    """
    if not parameters:
        return
    result = session.connection().execute(statement, parameters)
    assert isinstance(result, CursorResult)
    if result.rowcount != len(parameters):
        raise SchedulerError(f"{len(parameters) - result.rowcount} rows were not as the ledger expected them.")


def _hold_under_limit(table: type[Batch] | type[QueryRow]) -> Update:
    fits = or_(
        table.limit_nanousd.is_(None),
        table.held_nanousd + table.spent_nanousd + bindparam("amount") <= table.limit_nanousd,
    )
    return (
        update(table)
        .where(table.id == bindparam("key"), fits)
        .values(held_nanousd=table.held_nanousd + bindparam("amount"))
    )


def _move_purse(table: type[Tenant] | type[Batch] | type[QueryRow] | type[CapPeriod]) -> Update:
    return (
        update(table)
        .where(table.id == bindparam("key"))
        .values(
            held_nanousd=table.held_nanousd + bindparam("held"),
            spent_nanousd=table.spent_nanousd + bindparam("spent"),
        )
    )


# Statements are built once: building one costs more than running it.
_LOCK_TENANT = (
    update(Tenant)
    .where(Tenant.id == bindparam("key"))
    .values(held_nanousd=Tenant.held_nanousd)
    .returning(Tenant.timezone)
)
HOLD_TENANT = (
    update(Tenant).where(Tenant.id == bindparam("key")).values(held_nanousd=Tenant.held_nanousd + bindparam("amount"))
)
HOLD_BATCH = _hold_under_limit(Batch)
HOLD_QUERY = _hold_under_limit(QueryRow)
HOLD_CAP = (
    update(CapPeriod)
    .where(
        CapPeriod.id == bindparam("key"),
        CapPeriod.held_nanousd + CapPeriod.spent_nanousd + bindparam("amount") <= bindparam("cap_limit"),
    )
    .values(held_nanousd=CapPeriod.held_nanousd + bindparam("amount"))
)
MOVE_TENANT = _move_purse(Tenant)
MOVE_CAP = _move_purse(CapPeriod)
MOVE_BATCH = _move_purse(Batch)
MOVE_QUERY = _move_purse(QueryRow).values(
    samples_drawn=QueryRow.samples_drawn + bindparam("more_samples"),
    prompt_tokens=QueryRow.prompt_tokens + bindparam("more_prompt_tokens"),
    cached_tokens=QueryRow.cached_tokens + bindparam("more_cached_tokens"),
    completion_tokens=QueryRow.completion_tokens + bindparam("more_completion_tokens"),
    reasoning_tokens=QueryRow.reasoning_tokens + bindparam("more_reasoning_tokens"),
)
