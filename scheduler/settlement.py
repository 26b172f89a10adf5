"""How a wave, an attempt and a query end in the database. Every move names the state it expects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Bundle, Session

from models.tables import Attempt, Batch, LlmRow, PlanRow, QueryRow, SampleRow, Wave, Worker
from scheduler import ledger
from scheduler.core.pricing import Price
from scheduler.drafts import as_query
from scheduler.errors import CapReached, LeaseLost, SchedulerError
from scheduler.ledger import Funded
from scheduler.predictors import lessons_of
from scheduler.states import QUERY_OPEN, USABLE, AttemptState, BatchState, QueryState
from scheduler.types import COUNTS_ONLY, Arm, Lessons, Outcome, Plan, Prediction, Query, Sample

EXPIRED_BEST = "completion window ended; best so far"
"""Why a query ended whose batch ran out of time, but not before it had paid for an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptSample:
    """A sample that is already paid for, and the row that holds it."""

    row_id: int
    sample: Sample
    model: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One attempt as its worker gets it: everything that driving it needs.

    `kept` samples are the plan's model's own; `earlier` ones are other models', all paid for by other attempts.
    """

    funded: Funded
    query: Query
    plan: Plan
    prediction: Prediction
    kept: tuple[KeptSample, ...]
    earlier: tuple[KeptSample, ...] = ()


def claim(session: Session, attempt_ids: Sequence[int], worker_id: str, now: datetime) -> list[Work]:
    """Take those attempts that nobody has taken; a message delivered twice finds nothing the second time.

    A worker that was taken for dead takes nothing before its next heartbeat: it would be taken away again at once.
    """
    if session.scalar(select(Worker.stopped_at).where(Worker.id == worker_id)) is not None:
        return []
    claimed = session.scalars(
        update(Attempt)
        .where(Attempt.id.in_(attempt_ids), Attempt.state == AttemptState.DISPATCHED)
        .values(state=AttemptState.RUNNING, worker_id=worker_id, started_at=now)
        .returning(Attempt.id)
        .execution_options(synchronize_session=False)
    ).all()
    if not claimed:
        return []
    rows = session.execute(_CLAIMED, {"claimed": claimed}).all()
    started = [row.query.id for row in rows]
    run = session.connection()  # past the ORM, which would look for the changes among its objects
    if idle := set(claimed) - {row.attempt_id for row in rows}:  # cancelled or expired before anyone came
        run.execute(update(Attempt).where(Attempt.id.in_(idle)).values(state=AttemptState.LOST, finished_at=now))
    run.execute(
        update(QueryRow)
        .where(QueryRow.id.in_(started), QueryRow.state == QueryState.PLANNED)
        .values(state=QueryState.RUNNING, started_at=func.coalesce(QueryRow.started_at, now))
    )
    kept = kept_samples(session, started)
    models = {row.plan.model for row in rows}
    prices = {model: ledger.price_at(session, model, now) for model in models}
    llms = {llm.name: llm for llm in session.scalars(select(LlmRow).where(LlmRow.name.in_(models)))}
    learned = lessons_of(session, {row.plan.predictor_version for row in rows})
    works = []
    for row in rows:
        model = row.plan.model
        lessons = learned.get(row.plan.predictor_version, {}).get(model, COUNTS_ONLY)
        works.append(_work(row, worker_id, kept.get(row.query.id, ()), prices[model], llms.get(model), lessons))
    return works


def kept_samples(session: Session, query_ids: Sequence[int]) -> dict[int, tuple[KeptSample, ...]]:
    """Every usable sample these queries have already paid for, in the order in which they were drawn."""
    rows = session.execute(
        select(SampleRow, Wave.model)
        .join(Wave, Wave.id == SampleRow.wave_id)
        .where(SampleRow.query_id.in_(query_ids), SampleRow.finish_reason.in_(USABLE))
        .order_by(SampleRow.id)
    )
    kept: dict[int, tuple[KeptSample, ...]] = {}
    for row, model in rows:
        one = KeptSample(row_id=row.id, sample=as_sample(row), model=model)
        kept[row.query_id] = (*kept.get(row.query_id, ()), one)
    return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an attempt leaves its query. `called_off` stands for `cancelled` or `expired`, as its batch says."""

    funded: Funded
    state: QueryState
    because: str | None = None
    chosen_row_id: int | None = None
    confidence: float | None = None
    correct: bool | None = None
    error_json: str | None = None
    parked_need_nanousd: int | None = None
    called_off: bool = False


def answered(funded: Funded, state: QueryState, outcome: Outcome, chosen_row_id: int | None) -> Ending:
    """An end with an outcome: answered, or stopped by its budget with the best answer so far."""
    return Ending(
        funded=funded,
        state=state,
        because=outcome.because,
        chosen_row_id=chosen_row_id,
        confidence=outcome.confidence,
        correct=outcome.chosen.correct if outcome.chosen is not None else None,
    )


def failed(funded: Funded, error: SchedulerError) -> Ending:
    """An end with an error that goes to the error file."""
    error_json = json.dumps({"code": error.code, "message": error.message})
    return Ending(funded=funded, state=QueryState.FAILED, because=error.code, error_json=error_json)


def called_off(funded: Funded, best: Outcome, chosen_row_id: int | None) -> Ending:
    """An end because the batch was cancelled, or ran out of time and keeps the best answer so far."""
    return Ending(
        funded=funded,
        state=QueryState.CANCELLED,
        called_off=True,
        chosen_row_id=chosen_row_id,
        confidence=best.confidence,
        correct=best.chosen.correct if best.chosen is not None else None,
    )


def parked(funded: Funded, refused: CapReached) -> Ending:
    """Set aside until the cap that refused has room again; the samples are kept."""
    return Ending(
        funded=funded,
        state=QueryState.PARKED,
        because=refused.attributes["scope"],
        parked_need_nanousd=refused.attributes["need_nanousd"],
    )


def given_back(funded: Funded) -> Ending:
    """Unharmed, as a worker gives its queries back that is asked to stop."""
    return Ending(funded=funded, state=QueryState.QUEUED)


def handed_on(funded: Funded) -> Ending:
    """Asked in vain, or as far as its cap went: another model's turn comes with the next plan. The samples are kept."""
    return Ending(funded=funded, state=QueryState.QUEUED)


def end_all(session: Session, endings: Sequence[Ending], now: datetime) -> list[SchedulerError | None]:
    """Move attempts to `finished` and their queries out of `running`, both or neither.

    An attempt that is not its worker's any more ends nothing, and its place in the result holds a LeaseLost.
    """
    mine = set(
        session.scalars(
            update(Attempt)
            .where(
                Attempt.id.in_([ending.funded.attempt_id for ending in endings]),
                Attempt.worker_id.in_({ending.funded.worker_id for ending in endings}),
                Attempt.state == AttemptState.RUNNING,
            )
            .values(state=AttemptState.FINISHED, finished_at=now)
            .returning(Attempt.id)
        )
    )
    cancelling = set(
        session.scalars(
            select(Batch.id).where(
                Batch.id.in_({ending.funded.batch_id for ending in endings if ending.called_off}),
                Batch.state == BatchState.CANCELLING,
            )
        )
    )
    rows = [_ended(ending, cancelling, now) for ending in endings if ending.funded.attempt_id in mine]
    if rows:
        session.connection().execute(_END_QUERY, rows)
    return [None if e.funded.attempt_id in mine else LeaseLost(attempt_id=e.funded.attempt_id) for e in endings]


def _ended(ending: Ending, cancelling: set[str], now: datetime) -> dict[str, Any]:
    state, because = ending.state, ending.because
    if ending.called_off:
        state = QueryState.CANCELLED if ending.funded.batch_id in cancelling else QueryState.EXPIRED
        has_answer = state is QueryState.EXPIRED and ending.chosen_row_id is not None
        because = EXPIRED_BEST if has_answer else state.value
        if not has_answer:
            ending = replace(ending, chosen_row_id=None, confidence=None, correct=None)
    is_parked = state is QueryState.PARKED
    return {
        "key": ending.funded.query_id,
        "to": state,
        "at": None if state in QUERY_OPEN else now,
        "chosen": ending.chosen_row_id,
        "why": None if is_parked else because,
        "sure": ending.confidence,
        "right": ending.correct,
        "error": ending.error_json,
        "parked": because if is_parked else None,
        "need": ending.parked_need_nanousd,
    }


_END_QUERY = (
    update(QueryRow)
    .where(QueryRow.id == bindparam("key"), QueryRow.state == QueryState.RUNNING)
    .values(
        state=bindparam("to"),
        finished_at=bindparam("at"),
        chosen_sample_id=bindparam("chosen"),
        because=bindparam("why"),
        confidence=bindparam("sure"),
        correct=bindparam("right"),
        error_json=bindparam("error"),
        parked_because=bindparam("parked"),
        parked_need_nanousd=bindparam("need"),
    )
)


def as_sample(row: SampleRow) -> Sample:
    """A kept sample as the value that strategies see."""
    return Sample(
        text=row.text,
        tokens=row.tokens,
        answer=row.answer,
        reasoning_tokens=row.reasoning_tokens,
        finish_reason=row.finish_reason,
        logprob_mean=row.logprob_mean,
        message=json.loads(row.message_json) if row.message_json else None,
        correct=row.correct,
    )


def _work(
    row: Any, worker_id: str, kept: tuple[KeptSample, ...], price: Price, llm: LlmRow | None, lessons: Lessons
) -> Work:
    plan_row, query = row.plan, as_query(row.query, llm)
    funded = Funded(
        attempt_id=row.attempt_id,
        worker_id=worker_id,
        query_id=query.id,
        batch_id=row.query.batch_id,
        tenant_id=row.query.tenant_id,
        model=plan_row.model,
        price=price,
    )
    return Work(
        funded=funded,
        query=query,
        plan=as_plan(plan_row, lessons),
        prediction=Prediction(
            alpha=plan_row.alpha,
            beta=plan_row.beta,
            tokens_p50=plan_row.tokens_p50,
            tokens_p90=plan_row.tokens_p90,
            version=plan_row.predictor_version,
        ),
        kept=tuple(one for one in kept if one.model == plan_row.model),
        earlier=tuple(one for one in kept if one.model != plan_row.model),
    )


def as_plan(row: PlanRow | Any, lessons: Lessons = COUNTS_ONLY) -> Plan:
    """A plan row as the value that strategies see."""
    return Plan(
        query_id=row.query_id,
        arm=Arm(model=row.model, strategy=row.strategy),
        samples_max=row.samples_max,
        tokens_max=row.tokens_max,
        ceiling_nanousd=row.ceiling_nanousd,
        price=row.price,
        alpha=row.alpha,
        beta=row.beta,
        prompt_nanousd=row.prompt_nanousd,
        sample_nanousd=row.sample_nanousd,
        tokens_mean=row.tokens_mean,
        lessons=lessons,
        escalates=row.escalates,
    )


# Only the columns that are needed, as plain tuples: the ORM would make three objects of whole rows for each attempt.
_OF_QUERY = "id batch_id tenant_id model body_json prompt_tokens_estimated verifier reference task"
_OF_PLAN = "query_id model strategy samples_max tokens_max ceiling_nanousd price alpha beta prompt_nanousd"
_OF_PLAN += " sample_nanousd tokens_mean tokens_p50 tokens_p90 predictor_version escalates"
_CLAIMED: Any = (
    select(
        Attempt.id.label("attempt_id"),
        Bundle("query", *(getattr(QueryRow, name) for name in _OF_QUERY.split())),
        Bundle("plan", *(getattr(PlanRow, name) for name in _OF_PLAN.split())),
    )
    .join(QueryRow, QueryRow.id == Attempt.query_id)
    .join(PlanRow, PlanRow.id == Attempt.plan_id)
    .where(Attempt.id.in_(bindparam("claimed", expanding=True)), QueryRow.state == QueryState.PLANNED)
)
