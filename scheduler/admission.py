"""How much of one tenant may be in the queue and on the workers at once, whatever money it has."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import QueryRow, Tenant
from scheduler.errors import QueueFull
from scheduler.ledger import lock_tenant
from scheduler.states import QueryState

WAITING = (QueryState.QUEUED, QueryState.PARKED)
UNDER_WAY = (QueryState.PLANNED, QueryState.RUNNING)


def hold_queue(session: Session, tenant_id: str) -> int | None:
    """How many of the tenant's queries may wait, if that is limited; then nobody else may queue any for it meanwhile.

    Locks the tenant's row, so it comes before any other write of the transaction.
    """
    queued_max = session.scalar(select(Tenant.queued_max).where(Tenant.id == tenant_id))
    if queued_max is not None:
        lock_tenant(session, tenant_id)
    return queued_max


def check_queue(session: Session, tenant_id: str, queued_max: int | None, coming: int = 1) -> None:
    """Raises QueueFull where so many more would wait than the tenant may have."""
    if queued_max is None:
        return
    waiting = _count_waiting(session, tenant_id, at_most=queued_max + 1)
    if waiting + coming > queued_max:
        raise QueueFull(
            f"{min(waiting, queued_max)} of your queries wait and at most {queued_max} may; wait until some have "
            "ended, or ask whoever runs this server for more.",
            queued_max=queued_max,
        )


def room_of(session: Session, tenants: Sequence[Tenant]) -> dict[str, int]:
    """How many more queries of each tenant may be under way, for those whose number is limited."""
    limited = {tenant.id: tenant.running_max for tenant in tenants if tenant.running_max is not None}
    if not limited:
        return {}
    counted = select(QueryRow.tenant_id, func.count()).where(
        QueryRow.state.in_(UNDER_WAY), QueryRow.tenant_id.in_(limited)
    )
    busy = {row[0]: row[1] for row in session.execute(counted.group_by(QueryRow.tenant_id))}
    return {tenant_id: max(0, most - busy.get(tenant_id, 0)) for tenant_id, most in limited.items()}


def _count_waiting(session: Session, tenant_id: str, at_most: int) -> int:
    """Counted in the index, and no further than it matters."""
    some = select(QueryRow.id).where(QueryRow.state.in_(WAITING), QueryRow.tenant_id == tenant_id).limit(at_most)
    return session.scalar(select(func.count()).select_from(some.subquery())) or 0
