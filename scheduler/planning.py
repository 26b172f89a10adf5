"""Which queries are next, and how each will be answered: a window is claimed, predicted, allocated and funded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, func, insert, select, true, update
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, PlanRow, QueryRow, Tenant, Worker
from scheduler import refusals
from scheduler.admission import room_of
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.drafts import Draft
from scheduler.ledger import tightest_cap
from scheduler.settings import Settings
from scheduler.states import AttemptState, BatchState, QueryState
from scheduler.waiting import WANTED_FIRST, waiting_groups, waits_in

AHEAD = 2
"""Attempts kept funded per place in a worker: one that runs and one that waits, so that no place stands empty."""


def choose_window(
    session: Session,
    rotation: DeficitRoundRobin,
    settings: Settings,
    now: datetime,
    ready: ColumnElement[bool] | None = None,
) -> Sequence[QueryRow]:
    """The queries to plan next: as many as workers will soon have room for, fair across tenants.

    Those that are not `ready` are left for later.
    """
    room = min(settings.window_size, _room(session, settings, now))
    if room <= 0:
        return []
    tenants = session.scalars(_TENANTS_WAITING).all()
    if not tenants:
        return []
    models: dict[str, list[str]] = {tenant.id: [] for tenant in tenants}
    for tenant_id, model in waiting_groups(session, QueryState.QUEUED):
        if tenant_id in models:
            models[tenant_id].append(model)
    each = max(8, 2 * room // len(tenants)) if len(tenants) > 1 else room
    own_room = room_of(session, tenants)
    heads = {
        tenant.id: _heads(session, tenant.id, models[tenant.id], min(each, own_room.get(tenant.id, each)), ready)
        for tenant in tenants
    }
    costs = {tenant_id: [_rough_cost(row) for row in rows] for tenant_id, rows in heads.items()}
    turns = rotation.choose(costs, {tenant.id: tenant.weight for tenant in tenants}, room)
    return [row for tenant_id, count in turns.items() for row in heads[tenant_id][:count]]


def fund_window(session: Session, drafts: Sequence[Draft], now: datetime) -> list[int]:
    """Write the plans of those queries that still wait, and park what no cap can pay; returns the new attempts' ids."""
    _abandon(session, [draft for draft in drafts if draft.abandoned_because is not None], now)
    drafts = [draft for draft in drafts if draft.abandoned_because is None]
    parked, funded = _split_by_funds(session, drafts, now)
    refusals.note_unfunded(session, {(d.tenant_id, d.query.model): d.need_nanousd for d in reversed(parked)}, now)
    for draft in parked:
        session.execute(
            update(QueryRow)
            .where(QueryRow.id == draft.query.id, QueryRow.state == QueryState.QUEUED)
            .values(
                state=QueryState.PARKED,
                parked_because=draft.parked_because,
                parked_need_nanousd=draft.need_nanousd,
                model=draft.query.model,
                prompt_tokens_estimated=draft.query.prompt_tokens,
            )
        )
    taken = session.execute(
        update(QueryRow)
        .where(QueryRow.id.in_([draft.query.id for draft in funded]), QueryRow.state == QueryState.QUEUED)
        .values(state=QueryState.PLANNED, attempts=QueryRow.attempts + 1)
        .returning(QueryRow.id, QueryRow.attempts)
    )
    claimed = {row.id: row.attempts for row in taken}
    funded = [draft for draft in funded if draft.query.id in claimed]
    if not funded:
        return []
    session.execute(
        update(QueryRow),
        [{"id": d.query.id, "model": d.query.model, "prompt_tokens_estimated": d.query.prompt_tokens} for d in funded],
    )
    plan_ids = session.scalars(
        insert(PlanRow).returning(PlanRow.id, sort_by_parameter_order=True), [_plan_row(d, now) for d in funded]
    ).all()
    attempts = [
        {
            "query_id": draft.query.id,
            "plan_id": plan_id,
            "tenant_id": draft.tenant_id,
            "number": claimed[draft.query.id],
            "state": AttemptState.DISPATCHED,
            "created_at": now,
        }
        for draft, plan_id in zip(funded, plan_ids, strict=True)
    ]
    return list(session.scalars(insert(Attempt).returning(Attempt.id, sort_by_parameter_order=True), attempts))


def _abandon(session: Session, drafts: Sequence[Draft], now: datetime) -> None:
    """End queries that are not worth what they would cost, with the reason, and keep the plans that say so."""
    for draft in drafts:
        abandoned = session.execute(
            update(QueryRow)
            .where(QueryRow.id == draft.query.id, QueryRow.state == QueryState.QUEUED)
            .values(
                state=QueryState.ABANDONED,
                because=draft.abandoned_because,
                finished_at=now,
                prompt_tokens_estimated=draft.query.prompt_tokens,
            )
            .returning(QueryRow.id)
        ).first()
        if abandoned is not None:
            session.execute(insert(PlanRow), [_plan_row(draft, now) | {"samples_max": 0}])


def _room(session: Session, settings: Settings, now: datetime) -> int:
    """Attempts that may be funded now without running further ahead of the workers than `AHEAD`."""
    capacity = session.scalar(_CAPACITY, {"alive": now - timedelta(seconds=settings.lease_s)})
    if not capacity:
        return 0
    return AHEAD * int(capacity) - int(session.scalar(_BUSY) or 0)


def _heads(
    session: Session, tenant_id: str, models: Sequence[str], limit: int, ready: ColumnElement[bool] | None
) -> list[QueryRow]:
    rows: list[QueryRow] = []
    for model in models:
        waits = and_(waits_in(QueryState.QUEUED, tenant_id, model), true() if ready is None else ready)
        rows += session.scalars(select(QueryRow).where(waits).order_by(*WANTED_FIRST).limit(limit))
    return sorted(rows, key=lambda row: (-row.priority, row.id))[:limit]


def _rough_cost(row: QueryRow) -> int:
    """A cost to take turns by, in tokens: the prompt's bytes / 4 and half of the sample budget."""
    samples = row.samples_max or 4
    return len(row.body_json or "") // 4 + samples * (row.tokens_max or FAIR_TOKENS) // 2


FAIR_TOKENS = 256
"""A sample's length, for taking turns, where the query names no limit."""


def _split_by_funds(session: Session, drafts: Sequence[Draft], now: datetime) -> tuple[list[Draft], list[Draft]]:
    """Those that their tenant's caps cannot pay at all, and the rest."""
    parked, funded = [], []
    left: dict[tuple[str, str], tuple[int, str] | None] = {}
    for draft in drafts:
        key = (draft.tenant_id, draft.query.model)
        if key not in left:
            left[key] = tightest_cap(session, *key, now)
        tightest = left[key]
        if tightest is not None and tightest[0] < draft.need_nanousd:
            parked.append(replace(draft, parked_because=tightest[1]))
        else:
            funded.append(draft)
    return parked, funded


def _plan_row(draft: Draft, now: datetime) -> dict[str, Any]:
    return {
        "query_id": draft.query.id,
        "model": draft.plan.arm.model,
        "strategy": draft.plan.arm.strategy,
        "samples_max": draft.plan.samples_max,
        "tokens_max": draft.plan.tokens_max,
        "ceiling_nanousd": draft.plan.ceiling_nanousd,
        "price": draft.plan.price,
        "alpha": draft.prediction.alpha,
        "beta": draft.prediction.beta,
        "tokens_p50": draft.prediction.tokens_p50,
        "tokens_p90": draft.prediction.tokens_p90,
        "predictor_version": draft.prediction.version,
        "policy": draft.policy,
        "propensity": draft.propensity,
        "explored": draft.policy == "explore",
        "prompt_nanousd": draft.plan.prompt_nanousd,
        "sample_nanousd": draft.plan.sample_nanousd,
        "tokens_mean": draft.prediction.tokens_mean,
        "escalates": draft.plan.escalates,
        "gain": draft.gain,
        "cost_nanousd": draft.cost_nanousd,
        "created_at": now,
    }


# Statements of every tick are built once: building one costs more than running it.
_CAPACITY = select(func.sum(Worker.capacity)).where(
    Worker.heartbeat_at > bindparam("alive"), Worker.stopped_at.is_(None), Worker.quarantined_because.is_(None)
)
_BUSY = select(func.count()).where(Attempt.state.in_([AttemptState.DISPATCHED, AttemptState.RUNNING]))
_QUEUED = select(QueryRow.id).where(QueryRow.batch_id == Batch.id, QueryRow.state == QueryState.QUEUED).limit(1)
_TENANTS_WAITING = select(Tenant).where(
    Tenant.disabled_at.is_(None),
    Tenant.id.in_(
        select(Batch.tenant_id).where(
            Batch.state == BatchState.IN_PROGRESS, _QUEUED.correlate(Batch).scalar_subquery().is_not(None)
        )
    ),
)
"""Tenants that have a query waiting in a batch in progress."""
