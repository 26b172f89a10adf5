"""Which queries are next, and how each will be answered: a window is claimed, predicted, allocated and funded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, func, insert, select, true, update
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, LlmRow, PlanRow, PriceRow, QueryRow, Tenant, Worker
from scheduler import refusals
from scheduler.admission import room_of
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.core.pricing import Price
from scheduler.core.strategies.named import draws_all, is_vote
from scheduler.ledger import left_under, live_caps, name_of, price_at
from scheduler.prediction import Predictor
from scheduler.settings import Settings
from scheduler.states import AttemptState, BatchState, QueryState
from scheduler.tokens import TEMPLATE_TOKENS, estimate_prompt
from scheduler.types import Arm, Plan, Prediction, Query, Verdict, VerifierSpec

AHEAD = 2
"""Attempts kept funded per place in a worker: one that runs and one that waits, so that no place stands empty."""

WANTED_FIRST = (QueryRow.priority.desc(), QueryRow.id)
"""The order in which a tenant wants its queries answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A plan before it is written, with what it was drawn from, and what it is expected to gain and to cost.

    `drawn` samples were paid for by earlier attempts. `policy` says who decided on its budget (see
    `scheduler.budgets`), with what chance.
    """

    query: Query
    tenant_id: str
    batch_id: str
    plan: Plan
    prediction: Prediction
    price: Price
    is_auto: bool = False
    drawn: int = 0
    policy: str = "fixed"
    propensity: float = 1.0
    gain: float | None = None
    cost_nanousd: float | None = None
    parked_because: str | None = None
    abandoned_because: str | None = None
    need_nanousd: int = 0


def choose_strategy(
    wanted: str, verifier: VerifierSpec | None, samples_max: int | None, temperature: float | None
) -> str:
    """The strategy that `auto` stands for.

    A verifier that can judge makes best_of_n the better use of samples; answers that can be read and compared make a
    vote possible; anything else is answered once, as is whatever would give the same sample again and again.
    """
    if wanted != "auto":
        return wanted
    if samples_max == 1 or temperature == 0:
        return "direct"
    if verifier is not None and verifier.can_judge:
        return "best_of_n"
    return "self_consistency" if verifier is not None or samples_max is not None else "direct"


def choose_window(
    session: Session, rotation: DeficitRoundRobin, settings: Settings, now: datetime
) -> Sequence[QueryRow]:
    """The queries to plan next: as many as workers will soon have room for, fair across tenants."""
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
        tenant.id: _heads(session, tenant.id, models[tenant.id], min(each, own_room.get(tenant.id, each)))
        for tenant in tenants
    }
    costs = {tenant_id: [_rough_cost(row) for row in rows] for tenant_id, rows in heads.items()}
    turns = rotation.choose(costs, {tenant.id: tenant.weight for tenant in tenants}, room)
    return [row for tenant_id, count in turns.items() for row in heads[tenant_id][:count]]


def draft_plans(
    session: Session, rows: Sequence[QueryRow], predictor: Predictor, settings: Settings, now: datetime
) -> list[Draft]:
    """A plan for each query; those whose smallest wave their tenant's caps cannot pay are marked to be parked."""
    llms = {llm.name: llm for llm in session.scalars(select(LlmRow))}
    queries = [as_query(row, llms.get(str(row.model))) for row in rows]
    arms = [
        Arm(
            model=query.model,
            strategy=choose_strategy(row.strategy, query.verifier, row.samples_max, query.temperature),
        )
        for row, query in zip(rows, queries, strict=True)
    ]
    predictions = predictor.predict(queries, arms)
    prices = {model: price_at(session, model, now) for model in {query.model for query in queries}}
    drafts = []
    for row, query, arm, prediction in zip(rows, queries, arms, predictions, strict=True):
        plan = allot(row, query, arm, llms.get(query.model), settings)
        drafts.append(
            Draft(
                query=query,
                tenant_id=row.tenant_id,
                batch_id=row.batch_id,
                is_auto=row.strategy == "auto",
                drawn=row.samples_drawn,
                plan=plan,
                prediction=prediction,
                price=prices[query.model],
                need_nanousd=smallest_wave_nanousd(plan, query.prompt_tokens_max, prediction, prices[query.model]),
            )
        )
    return drafts


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
        update(QueryRow), [{"id": d.query.id, "prompt_tokens_estimated": d.query.prompt_tokens} for d in funded]
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


def allot(row: QueryRow | Any, query: Query, arm: Arm, llm: LlmRow | Any | None, settings: Settings) -> Plan:
    """The budget of one query: what the request asks for, else the defaults, within the model's context."""
    is_one = arm.kind == "direct" or query.is_greedy  # a second greedy sample would be the first once more
    samples_max = 1 if is_one else row.samples_max or settings.samples_max
    asked = [limit for limit in (row.tokens_max, query.params.get("max_tokens")) if limit is not None]
    tokens_max = min(asked) if asked else settings.tokens_max
    if llm is not None:
        tokens_max = max(1, min(tokens_max, llm.context_tokens - query.prompt_tokens - TEMPLATE_TOKENS))
    return Plan(
        query_id=query.id,
        arm=arm,
        samples_max=min(samples_max, settings.samples_limit),
        tokens_max=tokens_max,
        ceiling_nanousd=row.limit_nanousd,
    )


def is_voted(query: Query, plan: Plan) -> bool:
    """Whether the answer will be the one that most samples give."""
    return is_vote(plan.arm.kind, can_judge=query.verifier is not None and query.verifier.can_judge)


def is_drawn_at_once(query: Query, plan: Plan) -> bool:
    """Whether all samples will be drawn in one wave, whatever they show."""
    return draws_all(plan.arm.kind, can_judge=query.verifier is not None and query.verifier.can_judge)


def smallest_wave_nanousd(plan: Plan, prompt_tokens: int, prediction: Prediction, price: Price) -> int:
    """The most that the smallest wave worth running can cost."""
    return price.most_nanousd(prompt_tokens, 1, tokens_floor(plan, prediction))


def tokens_floor(plan: Plan, prediction: Prediction) -> int:
    """The fewest tokens a sample is given when money is short; a shorter one is likely cut before its answer."""
    return min(plan.tokens_max, prediction.tokens_p90)


def as_query(row: QueryRow | Any, llm: LlmRow | Any | None) -> Query:
    """A query row as the value that predictors and strategies see. Prompt tokens are counted where not yet known."""
    body: Mapping[str, Any] = json.loads(row.body_json or "{}")
    messages = tuple(body.get("messages", ()))
    prompt = estimate_prompt(llm, messages, body.get("tools") or (), known=row.prompt_tokens_estimated)
    return Query(
        id=row.id,
        model=str(row.model),
        messages=messages,
        prompt_tokens=prompt.tokens,
        prompt_tokens_max=prompt.tokens_max,
        verifier=VerifierSpec(kind=Verdict(row.verifier), reference=row.reference) if row.verifier else None,
        task=row.task,
        tenant_id=row.tenant_id,
        temperature=body.get("temperature"),
        params={key: value for key, value in body.items() if key not in {"model", "messages"}},
    )


def _room(session: Session, settings: Settings, now: datetime) -> int:
    """Attempts that may be funded now without running further ahead of the workers than `AHEAD`."""
    capacity = session.scalar(_CAPACITY, {"alive": now - timedelta(seconds=settings.lease_s)})
    if not capacity:
        return 0
    return AHEAD * int(capacity) - int(session.scalar(_BUSY) or 0)


def _heads(session: Session, tenant_id: str, models: Sequence[str], limit: int) -> list[QueryRow]:
    rows: list[QueryRow] = []
    for model in models:
        waits = waits_in(QueryState.QUEUED, tenant_id, model)
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


def tightest_cap(session: Session, tenant_id: str, model: str, now: datetime) -> tuple[int, str] | None:
    """What the tightest of a tenant's caps leaves in nano-dollars, and its name; None without caps."""
    timezone = session.get_one(Tenant, tenant_id).timezone
    leaves = []
    for cap in live_caps(session, tenant_id, model):
        leaves.append((left_under(session, cap, timezone, now), name_of(cap)))
    return min(leaves, default=None)


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
