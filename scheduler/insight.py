"""What plans promised and what came: calibration, the value of the lot, and what one more dollar would buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Cap, Pace, PlanRow, QueryRow, Tenant
from scheduler import predictors
from scheduler.budgets import ALLOTTED, EXPLORE
from scheduler.core.allocation import in_words
from scheduler.core.judging import binned
from scheduler.core.periods import Period, period_bounds
from scheduler.core.pricing import NANOUSD_PER_USD
from scheduler.ledger import name_of
from scheduler.priors import PLAIN
from scheduler.reports import Scope, ended

ROWS_MAX = 20_000
"""The newest queries that calibration looks at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """Queries whose plans promised about the same chance of a right answer, and the share that came right."""

    promised: float
    right: float
    queries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyValue:
    """What one way of setting budgets reached, estimated for all adaptive queries by inverse propensity."""

    policy: str
    queries: int
    labelled: int
    accuracy: float | None
    cost_nanousd: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceNow:
    """The shadow price of one budget in its present period."""

    tenant_name: str
    budget: str
    right_per_usd: float
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Insight:
    """How budgets were set within a scope."""

    predictor_version: str
    calibration: tuple[Promise, ...]
    policies: tuple[PolicyValue, ...]
    prices: tuple[PriceNow, ...]


def insight(session: Session, scope: Scope, now: datetime) -> Insight:
    """How budgets were set, and what the prices in force say."""
    rows = _plans(session, scope)
    row = predictors.champion(session)
    usable = row is not None and row.unusable_because is None
    return Insight(
        predictor_version=row.version if row is not None and usable else PLAIN,
        calibration=calibration([(one.gain, one.correct) for one in rows if one.gain and one.correct is not None]),
        policies=tuple(policy_value(name, [one for one in rows if one.policy == name]) for name in (ALLOTTED, EXPLORE)),
        prices=tuple(prices_now(session, scope, now)),
    )


def calibration(pairs: Sequence[tuple[float, bool]]) -> tuple[Promise, ...]:
    """Promises and what came of them, in bins of about as many queries each."""
    if not pairs:
        return ()
    promised, right = np.array(pairs, dtype=np.float64).T
    return tuple(
        Promise(promised=float(promised[rows].mean()), right=float(right[rows].mean()), queries=int(rows.sum()))
        for rows in binned(promised)
    )


def policy_value(policy: str, rows: Sequence[Any]) -> PolicyValue:
    """The self-normalised inverse-propensity estimate of a policy's accuracy and cost per query.

    A query counts as many times as there were queries for which the lot could have fallen the same way.
    """
    labelled = [row for row in rows if row.correct is not None]
    return PolicyValue(
        policy=policy,
        queries=len(rows),
        labelled=len(labelled),
        accuracy=_weighed([float(row.correct) for row in labelled], [row.propensity for row in labelled]),
        cost_nanousd=_weighed([float(row.spent_nanousd) for row in rows], [row.propensity for row in rows]),
    )


def prices_now(session: Session, scope: Scope, now: datetime) -> list[PriceNow]:
    """The price of every cap that has bound in its present period."""
    statement = (
        select(Pace, Cap, Tenant)
        .join(Cap, Cap.id == Pace.scope)
        .join(Tenant, Tenant.id == Pace.tenant_id)
        .where(Cap.removed_at.is_(None))
        .order_by(Tenant.name, Cap.created_at, Cap.id, Pace.starts_at)
    )
    if scope.tenant_id is not None:
        statement = statement.where(Pace.tenant_id == scope.tenant_id)
    found = []
    for pace, cap, tenant in session.execute(statement):
        starts_at, _ = period_bounds(Period(cap.period), now, tenant.timezone)
        if pace.starts_at == starts_at:
            per_usd = pace.price * NANOUSD_PER_USD
            found.append(
                PriceNow(
                    tenant_name=tenant.name, budget=name_of(cap), right_per_usd=per_usd, sentence=in_words(per_usd)
                )
            )
    return found


def _plans(session: Session, scope: Scope) -> Sequence[Any]:
    """The last plan of each ended query of the scope, beside what came of it."""
    latest = select(func.max(PlanRow.id)).where(PlanRow.query_id == QueryRow.id).correlate(QueryRow).scalar_subquery()
    columns = (PlanRow.gain, PlanRow.policy, PlanRow.propensity, QueryRow.correct, QueryRow.spent_nanousd)
    statement = (
        select(*columns)
        .select_from(QueryRow)
        .join(PlanRow, PlanRow.id == latest)
        .where(*ended(scope), QueryRow.samples_drawn > 0)
    )
    return session.execute(statement.order_by(QueryRow.id.desc()).limit(ROWS_MAX)).all()


def _weighed(values: Sequence[float], propensities: Sequence[float]) -> float | None:
    if not values:
        return None
    weights = 1.0 / np.asarray(propensities)
    return float((np.asarray(values) * weights).sum() / weights.sum())
