"""What was spent and what it bought: queries, accuracy, tokens, money, latency, grouped as one likes.

Two instants put things into a report's period. Money and tokens count to the instant at which they were reserved, as
they do for caps, so that a report and a cap of the same days agree to the nano-dollar. Queries, and what is known of
each only at its end (outcome, correctness, samples, latency, saving), count to the instant at which they ended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, literal, literal_column, select
from sqlalchemy.orm import Session, aliased

from models.tables import Batch, Entry, PlanRow, QueryRow, SampleRow, Tenant, Wave
from scheduler.caps import CapStatus, list_caps
from scheduler.spend_groups import SpendGroup
from scheduler.states import QUERY_FINAL, QueryState, WaveState

OWN_OUTCOMES = frozenset({QueryState.ANSWERED, QueryState.BUDGET_STOPPED, QueryState.ABANDONED})
"""Ends that a query's own budget and answers brought about; what broke or was called off says nothing of budgets."""

ROWS_AT_ONCE = 5_000
"""Rows fetched at a time where single values are needed; only eight bytes of each are kept."""

# By its name: PostgreSQL takes the same expression with other bind parameters for another expression.
_BY_KEY: ColumnElement[Any] = literal_column("group_key")


class By(StrEnum):
    """What a report has one group for each of. Days are UTC days."""

    TENANT = "tenant"
    MODEL = "model"
    STRATEGY = "strategy"
    TASK = "task"
    DAY = "day"
    BATCH = "batch"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Which part of the ledger a report is about; `to` is the first instant after it."""

    tenant_id: str | None = None
    batch_id: str | None = None
    from_: datetime | None = None
    to: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpendReport:
    """Groups in the order of their keys, their total, and the caps in force now."""

    by: By
    scope: Scope
    groups: tuple[SpendGroup, ...]
    total: SpendGroup
    caps: tuple[CapStatus, ...]


def spend_report(session: Session, scope: Scope, by: By, now: datetime) -> SpendReport:
    """What was spent within the scope and what it bought."""
    groups: dict[str | None, SpendGroup] = {}
    _add_money(session, scope, by, groups)
    _add_tokens(session, scope, by, groups)
    _add_ended_queries(session, scope, by, groups)
    _add_latencies(session, scope, by, groups)
    _add_prompt_errors(session, scope, by, groups)
    total = SpendGroup(key=None)
    for group in groups.values():
        total.add(group)
    return SpendReport(
        by=by,
        scope=scope,
        groups=tuple(sorted(groups.values(), key=lambda group: (group.key is None, group.key or ""))),
        total=total,
        caps=tuple(list_caps(session, scope.tenant_id, now)),
    )


def _add_money(session: Session, scope: Scope, by: By, groups: dict[str | None, SpendGroup]) -> None:
    key = _key(session, by, at=Entry.effective_at, model=Entry.model)
    statement = _joined(
        select(key, func.sum(Entry.spent_delta_nanousd)).join(QueryRow, QueryRow.id == Entry.query_id), by
    ).where(*_within(scope, Entry.tenant_id, Entry.batch_id, Entry.effective_at))
    for name, spent in session.execute(statement.group_by(_BY_KEY)):
        _group(groups, name).cost_nanousd = int(spent or 0)


def _add_tokens(session: Session, scope: Scope, by: By, groups: dict[str | None, SpendGroup]) -> None:
    # What a held wave has reported so far is in no entry yet.
    columns = (Wave.prompt_tokens, Wave.cached_tokens, Wave.completion_tokens, Wave.reasoning_tokens)
    key = _key(session, by, at=Wave.reserved_at, model=Wave.model)
    statement = _joined(
        select(key, *(func.sum(column) for column in columns)).join(QueryRow, QueryRow.id == Wave.query_id), by
    ).where(Wave.state != WaveState.HELD, *_within(scope, Wave.tenant_id, Wave.batch_id, Wave.reserved_at))
    for name, *sums in session.execute(statement.group_by(_BY_KEY)):
        group = _group(groups, name)
        for column, value in zip(columns, sums, strict=True):
            setattr(group, column.key, int(value or 0))


def _add_ended_queries(session: Session, scope: Scope, by: By, groups: dict[str | None, SpendGroup]) -> None:
    chosen = aliased(SampleRow)
    largest = _largest_budgets(scope)
    # A query that several models were asked may have drawn more than one of them may draw: that is all it could have.
    uniform = case(
        (
            QueryRow.samples_drawn.between(1, func.coalesce(largest.c.samples_max, 1)),
            QueryRow.spent_nanousd * func.coalesce(largest.c.samples_max, 1) // QueryRow.samples_drawn,
        ),
        else_=QueryRow.spent_nanousd,
    )
    key = _key(session, by, at=_ended_at(), model=_planned_model())
    statement = _joined(
        select(
            key,
            QueryRow.state,
            func.count(),
            func.count(QueryRow.correct),
            func.sum(case((QueryRow.correct.is_(True), 1), else_=0)),
            func.sum(QueryRow.samples_drawn),
            func.sum(QueryRow.completion_tokens - func.coalesce(chosen.tokens, 0)),
            func.sum(QueryRow.spent_nanousd),
            func.sum(uniform),
        )
        .select_from(QueryRow)
        .outerjoin(chosen, chosen.id == QueryRow.chosen_sample_id)
        .outerjoin(largest, largest.c.batch_id == QueryRow.batch_id),
        by,
    ).where(*ended(scope))
    for name, state, count, *sums in session.execute(statement.group_by(_BY_KEY, QueryRow.state)):
        labelled, correct, samples, discarded, spent, uniform_cost = (int(value or 0) for value in sums)
        _group(groups, name).add(
            SpendGroup(
                key=name,
                outcomes=Counter({state: count}),
                labelled=labelled,
                correct=correct,
                samples=samples,
                discarded_tokens=max(discarded, 0),
                own_queries=count if state in OWN_OUTCOMES else 0,
                own_samples=samples if state in OWN_OUTCOMES else 0,
                own_cost_nanousd=spent if state in OWN_OUTCOMES else 0,
                uniform_cost_nanousd=uniform_cost if state in OWN_OUTCOMES else 0,
            )
        )


def _add_latencies(session: Session, scope: Scope, by: By, groups: dict[str | None, SpendGroup]) -> None:
    key = _key(session, by, at=_ended_at(), model=_planned_model())
    statement = _joined(select(key, QueryRow.started_at, QueryRow.finished_at).select_from(QueryRow), by).where(
        QueryRow.started_at.is_not(None), QueryRow.finished_at.is_not(None), *ended(scope)
    )
    for name, started_at, finished_at in _streamed(session, statement):
        _group(groups, name).latencies_s.append((finished_at - started_at).total_seconds())


def _add_prompt_errors(session: Session, scope: Scope, by: By, groups: dict[str | None, SpendGroup]) -> None:
    key = _key(session, by, at=Wave.reserved_at, model=Wave.model)
    statement = _joined(
        select(key, QueryRow.prompt_tokens_estimated, Wave.prompt_tokens).join(QueryRow, QueryRow.id == Wave.query_id),
        by,
    ).where(
        Wave.state == WaveState.SETTLED,
        Wave.prompt_tokens > 0,
        QueryRow.prompt_tokens_estimated.is_not(None),
        *_within(scope, Wave.tenant_id, Wave.batch_id, Wave.reserved_at),
    )
    for name, estimated, billed in _streamed(session, statement):
        _group(groups, name).prompt_errors.append(abs(estimated - billed) / billed)


def _streamed(session: Session, statement: Select[Any]) -> Any:
    return session.execute(statement, execution_options={"yield_per": ROWS_AT_ONCE})


def _group(groups: dict[str | None, SpendGroup], key: str | None) -> SpendGroup:
    return groups.setdefault(key, SpendGroup(key=key))


def _key(session: Session, by: By, *, at: Any, model: Any) -> ColumnElement[Any]:
    """What a row is grouped by. Every statement joins or selects from the queries table."""
    keys: dict[By, Any] = {
        By.TENANT: Tenant.name,
        By.MODEL: model,
        By.STRATEGY: func.coalesce(_latest_plan(PlanRow.strategy), QueryRow.strategy),
        By.TASK: QueryRow.task,
        By.DAY: _day(session, at),
        By.BATCH: case((Batch.interactive.is_(True), literal("interactive")), else_=Batch.id),
    }
    key: ColumnElement[Any] = keys[by].label("group_key")
    return key


def _joined(statement: Select[Any], by: By) -> Select[Any]:
    """With the table that holds the key, where the queries table does not."""
    if by is By.TENANT:
        return statement.join(Tenant, Tenant.id == QueryRow.tenant_id)
    if by is By.BATCH:
        return statement.join(Batch, Batch.id == QueryRow.batch_id)
    return statement


def _within(scope: Scope, tenant_id: Any, batch_id: Any, at: Any) -> list[ColumnElement[bool]]:
    conditions = []
    if scope.tenant_id is not None:
        conditions.append(tenant_id == scope.tenant_id)
    if scope.batch_id is not None:
        conditions.append(batch_id == scope.batch_id)
    if scope.from_ is not None:
        conditions.append(at >= scope.from_)
    if scope.to is not None:
        conditions.append(at < scope.to)
    return conditions


def ended(scope: Scope) -> list[ColumnElement[bool]]:
    """The conditions under which a query ended within a scope."""
    within = _within(scope, QueryRow.tenant_id, QueryRow.batch_id, _ended_at())
    return [QueryRow.state.in_(sorted(QUERY_FINAL)), *within]


def _ended_at() -> Any:
    # A line that could not be read ended as it came.
    return func.coalesce(QueryRow.finished_at, QueryRow.created_at, type_=QueryRow.finished_at.type)


def _largest_budgets(scope: Scope) -> Any:
    statement = (
        select(QueryRow.batch_id, func.max(PlanRow.samples_max).label("samples_max"))
        .join(PlanRow, PlanRow.query_id == QueryRow.id)
        .where(
            *_within(
                Scope(tenant_id=scope.tenant_id, batch_id=scope.batch_id), QueryRow.tenant_id, QueryRow.batch_id, None
            )
        )
    )
    return statement.group_by(QueryRow.batch_id).subquery()


def _planned_model() -> Any:
    return func.coalesce(_latest_plan(PlanRow.model), QueryRow.model)


def _latest_plan(column: Any) -> Any:
    return (
        select(column)
        .where(PlanRow.query_id == QueryRow.id)
        .order_by(PlanRow.id.desc())
        .limit(1)
        .correlate(QueryRow)
        .scalar_subquery()
    )


def _day(session: Session, at: Any) -> Any:
    if session.get_bind().dialect.name == "sqlite":
        return func.strftime("%Y-%m-%d", at)
    return func.to_char(func.timezone("UTC", at), "YYYY-MM-DD")
