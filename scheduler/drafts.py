"""What each query could be given: a strategy and the most it may have, with what is believed of it and its price."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import LlmRow, QueryRow
from scheduler.core.pricing import Price
from scheduler.core.strategies.named import draws_all, is_vote
from scheduler.ledger import price_at
from scheduler.prediction import Predictor
from scheduler.settings import Settings
from scheduler.tokens import TEMPLATE_TOKENS, estimate_prompt
from scheduler.types import Arm, Plan, Prediction, Query, Verdict, VerifierSpec


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
