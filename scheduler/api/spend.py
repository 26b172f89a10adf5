"""/v1/spend: what was spent, and what it bought."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from scheduler import reports
from scheduler.api.bodies import StrictRoute
from scheduler.api.caps import CapReply, cap_reply, visible_tenant
from scheduler.api.errors import documented
from scheduler.api.security import Reader
from scheduler.api.sessions import Now, Reading
from scheduler.api.shapes import Instant, Reply, in_utc, usd, usd_or_none
from scheduler.cancellation import find_batch
from scheduler.errors import InvalidRequest
from scheduler.insight import Insight, insight
from scheduler.spend_groups import SpendGroup

router = APIRouter(prefix="/v1/spend", tags=["spend"], route_class=StrictRoute)


class SpendGroupReply(Reply):
    """One line of the report; what its figures mean is told in `scheduler.spend_groups.SpendGroup`."""

    key: str | None
    queries: int
    outcomes: dict[str, int]
    labelled: int
    correct: int
    accuracy: float | None
    samples: int
    samples_per_query: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    discarded_tokens: int
    cost_nanousd: int
    cost_usd: str
    cost_per_correct_nanousd: int | None
    cost_per_correct_usd: str | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    uniform_cost_nanousd: int
    uniform_cost_usd: str
    saving_ratio: float | None
    prompt_estimate_error: float | None


class PromiseReply(Reply):
    """Queries whose plans promised about the same chance of a right answer, and the share that came right."""

    promised: float
    right: float
    queries: int


class PolicyReply(Reply):
    """What one way of setting budgets (`allotd`, or `explore`: the plain budget by lot) is estimated to reach."""

    policy: str
    queries: int
    labelled: int
    accuracy: float | None
    cost_usd: str | None


class PriceNowReply(Reply):
    """The shadow price of a cap that binds, and what it says."""

    tenant: str
    budget: str
    right_per_usd: float
    sentence: str


class BudgetsReply(Reply):
    """How budgets were set: by which predictor now, how well promises were kept, and what one more dollar would buy."""

    predictor_version: str
    calibration: list[PromiseReply]
    policies: list[PolicyReply]
    prices: list[PriceNowReply]


class SpendReply(Reply):
    """A spend report; `from` and `to` (the first instant after it) are null where the period is open."""

    object: Literal["spend_report"] = "spend_report"
    by: reports.By
    from_: Annotated[datetime | None, Field(alias="from")]
    to: datetime | None
    groups: list[SpendGroupReply]
    total: SpendGroupReply
    caps: list[CapReply]
    budgets: BudgetsReply


@router.get("", responses=documented())
def spend(
    caller: Reader,
    session: Reading,
    now: Now,
    tenant: Annotated[str | None, Query(description="A tenant's name or id; all that you may see without it.")] = None,
    by: reports.By = reports.By.TENANT,
    from_: Annotated[Instant, Query(alias="from", description="An instant, or a date (from midnight).")] = None,
    to: Annotated[Instant, Query(description="The first instant or date after the period.")] = None,
    batch: Annotated[str | None, Query(description="One batch only.")] = None,
) -> SpendReply:
    """What was spent, and what it bought, by tenant, model, strategy, task, day or batch.

    Money and tokens count to the instant of their reservation, queries to the instant at which they ended.
    """
    if batch is not None:
        batch = find_batch(session, caller.tenant_id, batch).id
    scope = reports.Scope(
        tenant_id=visible_tenant(session, caller, tenant),
        batch_id=batch,
        from_=in_utc(from_, "from"),
        to=in_utc(to, "to"),
    )
    if scope.from_ is not None and scope.to is not None and scope.from_ >= scope.to:
        raise InvalidRequest("from must be before to: to is the first instant after the period.", param="from")
    report = reports.spend_report(session, scope, by, now)
    return SpendReply.model_validate(
        {
            "by": report.by,
            "from": report.scope.from_,
            "to": report.scope.to,
            "groups": [_group(group) for group in report.groups],
            "total": _group(report.total),
            "caps": [cap_reply(status) for status in report.caps],
            "budgets": _budgets(insight(session, scope, now)),
        }
    )


def _budgets(found: Insight) -> BudgetsReply:
    return BudgetsReply(
        predictor_version=found.predictor_version,
        calibration=[PromiseReply(**asdict(one)) for one in found.calibration],
        policies=[
            PolicyReply(
                policy=one.policy,
                queries=one.queries,
                labelled=one.labelled,
                accuracy=one.accuracy,
                cost_usd=None if one.cost_nanousd is None else usd(round(one.cost_nanousd)),
            )
            for one in found.policies
        ],
        prices=[
            PriceNowReply(
                tenant=one.tenant_name, budget=one.budget, right_per_usd=one.right_per_usd, sentence=one.sentence
            )
            for one in found.prices
        ],
    )


def _group(group: SpendGroup) -> SpendGroupReply:
    return SpendGroupReply(
        key=group.key,
        queries=group.queries,
        outcomes=dict(sorted(group.outcomes.items())),
        labelled=group.labelled,
        correct=group.correct,
        accuracy=group.accuracy,
        samples=group.samples,
        samples_per_query=group.samples_per_query,
        prompt_tokens=group.prompt_tokens,
        cached_tokens=group.cached_tokens,
        completion_tokens=group.completion_tokens,
        reasoning_tokens=group.reasoning_tokens,
        discarded_tokens=group.discarded_tokens,
        cost_nanousd=group.cost_nanousd,
        cost_usd=usd(group.cost_nanousd),
        cost_per_correct_nanousd=group.cost_per_correct_nanousd,
        cost_per_correct_usd=usd_or_none(group.cost_per_correct_nanousd),
        latency_p50_s=group.latency_p50_s,
        latency_p95_s=group.latency_p95_s,
        uniform_cost_nanousd=group.uniform_cost_nanousd,
        uniform_cost_usd=usd(group.uniform_cost_nanousd),
        saving_ratio=group.saving_ratio,
        prompt_estimate_error=group.prompt_estimate_error,
    )
