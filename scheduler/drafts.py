"""What each query could be given: a strategy and the most it may have, with what is believed of it and its price."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import LlmRow, QueryRow
from scheduler.arms import NOT_YET, Asked, asked_so_far, models_of, open_models
from scheduler.core.pricing import Price
from scheduler.core.strategies.named import draws_all, is_vote
from scheduler.ledger import price_at, tightest_cap
from scheduler.prediction import Predictor
from scheduler.probes import probes_of
from scheduler.settings import Settings
from scheduler.tokens import TEMPLATE_TOKENS, estimate_prompt
from scheduler.types import Arm, Plan, Prediction, Probe, Query, Verdict, VerifierSpec

UNKNOWN = Prediction(alpha=1.0, beta=1.0, tokens_p50=1, tokens_p90=1, version="")
"""Before a query is predicted, together with others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A plan before it is written, with what it was drawn from, and what it is expected to gain and to cost.

    `drawn` samples of its model were paid for by earlier attempts. `policy` says who decided on its budget (see
    `scheduler.budgets`), with what chance. `others` are the same query's drafts under the other models that may be
    asked, and `is_begun` says that one of them has drawn samples that are paid for.
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
    others: tuple[Draft, ...] = ()
    is_begun: bool = False

    @property
    def variants(self) -> tuple[Draft, ...]:
        """The query's drafts under each model that may be asked, this one first."""
        return replace(self, others=()), *self.others


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
    """A plan for each query, with what every model that may still be asked could be given."""
    llms = {llm.name: llm for llm in session.scalars(select(LlmRow))}
    asked = asked_so_far(session, rows)
    probes = probes_of(session, [row.id for row in rows])
    models = [open_models(row, asked[row.id]) if row.models_json else models_of(row) for row in rows]
    prices = {model: price_at(session, model, now) for model in {model for some in models for model in some}}
    drafts = [
        draft_for(row, llms.get(model), model, prices[model], settings, asked.get(row.id), probes.get(row.id))
        for row, some in zip(rows, models, strict=True)
        for model in some
    ]
    drafts = with_beliefs(drafts, predictor)
    groups = _split(drafts, [len(some) for some in models])
    asking = {(draft.tenant_id, draft.query.model) for group in groups if len(group) > 1 for draft in group}
    caps = {key: tightest_cap(session, *key, now) for key in asking}
    return [_together(group, caps, row.left_nanousd) for row, group in zip(rows, groups, strict=True)]


def draft_for(
    row: QueryRow,
    llm: LlmRow | None,
    model: str,
    price: Price,
    settings: Settings,
    asked: Mapping[str, Asked] | None = None,
    probe: Probe | None = None,
) -> Draft:
    """What a query could be given if `model` were asked, of which it has drawn what `asked` says."""
    query = as_query(row, llm, model, probe)
    strategy = choose_strategy(row.strategy, query.verifier, row.samples_max, query.temperature)
    if row.models_json and query.verifier is not None and query.verifier.can_judge:
        strategy = "best_of_n"  # also where each model draws one sample: the next model's is another one
    return Draft(
        query=query,
        tenant_id=row.tenant_id,
        batch_id=row.batch_id,
        is_auto=row.strategy == "auto",
        drawn=row.samples_drawn if asked is None else asked.get(model, NOT_YET).samples,
        plan=allot(row, query, Arm(model=model, strategy=strategy), llm, settings),
        prediction=UNKNOWN,
        price=price,
        is_begun=bool(row.samples_drawn),
    )


def with_beliefs(drafts: Sequence[Draft], predictor: Predictor) -> list[Draft]:
    """The drafts with what is believed of each, and what its smallest wave needs."""
    told = predictor.predict([draft.query for draft in drafts], [draft.plan.arm for draft in drafts])
    return [
        replace(
            draft,
            prediction=prediction,
            need_nanousd=smallest_wave_nanousd(draft.plan, draft.query.prompt_tokens_max, prediction, draft.price),
        )
        for draft, prediction in zip(drafts, told, strict=True)
    ]


def _split(drafts: Sequence[Draft], counts: Sequence[int]) -> list[Sequence[Draft]]:
    ends = list(accumulate(counts))
    return [drafts[end - count : end] for count, end in zip(counts, ends, strict=True)]


def _together(
    variants: Sequence[Draft], caps: Mapping[tuple[str, str], tuple[int, str] | None], limit_nanousd: int | None
) -> Draft:
    """One draft of those of a query. Where its caps and its own limit can pay some models, no others are asked.

    What those have drawn counts all the same. Where they can pay none, it is the model's that lacks least.
    """
    if len(variants) > 1:
        lacks = []
        for draft in variants:
            cap = caps[draft.tenant_id, draft.query.model]
            left = [each for each in (limit_nanousd, cap[0] if cap is not None else None) if each is not None]
            lacks.append(draft.need_nanousd - min(left, default=draft.need_nanousd))
        if min(lacks) > 0:
            return variants[lacks.index(min(lacks))]
        paired = zip(variants, lacks, strict=True)
        variants = [draft if lack <= 0 else _drawn_only(draft) for draft, lack in paired if lack <= 0 or draft.drawn]
    return replace(variants[0], others=tuple(variants[1:]))


def _drawn_only(draft: Draft) -> Draft:
    """The draft without any further sample."""
    return replace(draft, plan=replace(draft.plan, samples_max=draft.drawn))


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


def as_query(
    row: QueryRow | Any, llm: LlmRow | Any | None, model: str | None = None, probe: Probe | None = None
) -> Query:
    """A query row as the value that predictors and strategies see, as one that `model` is asked (else the row's own).

    Prompt tokens are counted where not yet known.
    """
    body: Mapping[str, Any] = json.loads(row.body_json or "{}")
    messages = tuple(body.get("messages", ()))
    prompt = estimate_prompt(
        llm,
        messages,
        body.get("tools") or (),
        known=row.prompt_tokens_estimated if model in {None, row.model} else None,
    )
    return Query(
        id=row.id,
        model=model or str(row.model),
        messages=messages,
        prompt_tokens=prompt.tokens,
        prompt_tokens_max=prompt.tokens_max,
        verifier=VerifierSpec(kind=Verdict(row.verifier), reference=row.reference) if row.verifier else None,
        task=row.task,
        tenant_id=row.tenant_id,
        temperature=body.get("temperature"),
        params={key: value for key, value in body.items() if key not in {"model", "messages"}},
        probe=probe,
    )
