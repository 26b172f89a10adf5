"""How balances move: tenants, cap periods, batches and queries, each only from where it is expected to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Update, bindparam, or_, update
from sqlalchemy.orm import Session

from models.tables import Batch, CapPeriod, QueryRow, Tenant
from scheduler.errors import NotFound
from scheduler.ledger.rows import NUMBER, TEXT, Changes, Transfer, Values


def lock_tenant(session: Session, tenant_id: str) -> str:
    """Make every other write of this tenant's money wait for the end of this transaction; returns its time zone."""
    session.flush()  # the ledger reads past the session
    # A write that changes nothing takes the row's lock in one round trip on PostgreSQL and costs nothing on SQLite,
    # whose transactions are alone already.
    timezone: str | None = session.connection().scalar(_LOCK_TENANT, {"key": tenant_id})
    if timezone is None:
        raise NotFound(f"There is no tenant '{tenant_id}'.")
    return timezone


def moved(moves: Iterable[tuple[Any, int, int]]) -> list[dict[str, Any]]:
    """What each purse releases and spends, summed: given and returned per row, which is written once."""
    held: Counter[Any] = Counter()
    spent: Counter[Any] = Counter()
    for key, release, cost in moves:
        held[key] += release
        spent[key] += cost
    return [{"key": k, "held": -held[k], "spent": spent[k]} for k in sorted(held)]


def _hold_under_limit(table: type[Batch] | type[QueryRow], values: Values) -> Update:
    fits = or_(
        table.limit_nanousd.is_(None),
        table.held_nanousd + table.spent_nanousd + values["amount"] <= table.limit_nanousd,
    )
    return (
        update(table).where(table.id == values["key"], fits).values(held_nanousd=table.held_nanousd + values["amount"])
    )


def _move_purse(table: type[Tenant] | type[Batch] | type[QueryRow] | type[CapPeriod], values: Values) -> Update:
    return (
        update(table)
        .where(table.id == values["key"])
        .values(
            held_nanousd=table.held_nanousd + values["held"],
            spent_nanousd=table.spent_nanousd + values["spent"],
        )
    )


def _move_query(values: Values) -> Update:
    return _move_purse(QueryRow, values).values(
        samples_drawn=QueryRow.samples_drawn + values["more_samples"],
        prompt_tokens=QueryRow.prompt_tokens + values["more_prompt_tokens"],
        cached_tokens=QueryRow.cached_tokens + values["more_cached_tokens"],
        completion_tokens=QueryRow.completion_tokens + values["more_completion_tokens"],
        reasoning_tokens=QueryRow.reasoning_tokens + values["more_reasoning_tokens"],
    )


def _hold_cap(values: Values) -> Update:
    fits = CapPeriod.held_nanousd + CapPeriod.spent_nanousd + values["amount"] <= values["cap_limit"]
    return (
        update(CapPeriod)
        .where(CapPeriod.id == values["key"], fits)
        .values(held_nanousd=CapPeriod.held_nanousd + values["amount"])
    )


def _hold_tenant(values: Values) -> Update:
    return update(Tenant).where(Tenant.id == values["key"]).values(held_nanousd=Tenant.held_nanousd + values["amount"])


# Statements are built once: building one costs more than running it.
_LOCK_TENANT = (
    update(Tenant)
    .where(Tenant.id == bindparam("key"))
    .values(held_nanousd=Tenant.held_nanousd)
    .returning(Tenant.timezone)
)
HOLD = Transfer(
    tenants=Changes(_hold_tenant, key=TEXT, amount=NUMBER),
    caps=Changes(_hold_cap, key=NUMBER, amount=NUMBER, cap_limit=NUMBER),
    batches=Changes(lambda values: _hold_under_limit(Batch, values), key=TEXT, amount=NUMBER),
    queries=Changes(lambda values: _hold_under_limit(QueryRow, values), key=NUMBER, amount=NUMBER),
)
MOVE_TENANT = Changes(lambda values: _move_purse(Tenant, values), key=TEXT, held=NUMBER, spent=NUMBER)
MOVE_CAP = Changes(lambda values: _move_purse(CapPeriod, values), key=NUMBER, held=NUMBER, spent=NUMBER)
MOVE_BATCH = Changes(lambda values: _move_purse(Batch, values), key=TEXT, held=NUMBER, spent=NUMBER)
MOVE_QUERY = Changes(
    _move_query,
    key=NUMBER,
    held=NUMBER,
    spent=NUMBER,
    more_samples=NUMBER,
    more_prompt_tokens=NUMBER,
    more_cached_tokens=NUMBER,
    more_completion_tokens=NUMBER,
    more_reasoning_tokens=NUMBER,
)
