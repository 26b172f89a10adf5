"""Where queries wait, and in which order: found by index, however many there are."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, select, true
from sqlalchemy.orm import Session

from models.tables import Batch, PriceRow, QueryRow, Tenant
from scheduler.states import BatchState, QueryState

WANTED_FIRST = (QueryRow.priority.desc(), QueryRow.id)
"""The order in which a tenant wants its queries answered."""


def waiting_groups(session: Session, state: QueryState) -> list[tuple[str, str]]:
    """The tenants and models of queries that wait in a state: a look into the index for each pair of them."""
    models = select(PriceRow.model).distinct().subquery()  # what has no price is not taken in
    waits = (
        select(QueryRow.id)
        .where(QueryRow.state == state, QueryRow.tenant_id == Tenant.id, QueryRow.model == models.c.model)
        .limit(1)
        .correlate(Tenant, models)
        .scalar_subquery()
    )
    pairs = select(Tenant.id, models.c.model).join(models, true()).where(waits.is_not(None))
    return [(row.id, row.model) for row in session.execute(pairs.order_by(Tenant.id, models.c.model))]


def waits_in(state: QueryState, tenant_id: str, model: str) -> ColumnElement[bool]:
    """Whether a query waits in a state, in a batch that is in progress."""
    # A scalar subquery is looked up where it stands; a join could be done by reading all that waits.
    batch_state = select(Batch.state).where(Batch.id == QueryRow.batch_id).correlate(QueryRow).scalar_subquery()
    return and_(
        QueryRow.state == state,
        QueryRow.tenant_id == tenant_id,
        QueryRow.model == model,
        batch_state == BatchState.IN_PROGRESS,
    )
