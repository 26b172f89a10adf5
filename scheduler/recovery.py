"""What must be taken back: attempts of dead workers, queries of batches that ended, queries that can go on again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

import structlog
from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, PlanRow, QueryRow, Wave, Worker
from scheduler import dispatch, ledger
from scheduler.drafts import as_query
from scheduler.execution import best_of
from scheduler.ledger import tightest_cap
from scheduler.predictors import lessons_of
from scheduler.settings import Settings
from scheduler.settlement import EXPIRED_BEST, KeptSample, as_plan, kept_samples
from scheduler.states import AttemptState, BatchState, QueryState, WaveState
from scheduler.types import COUNTS_ONLY, Outcome
from scheduler.waiting import WANTED_FIRST, waiting_groups, waits_in

AT_ONCE = 100
"""Rows taken back per transaction, so that none holds its locks for long."""

WAITING = (QueryState.QUEUED, QueryState.PARKED, QueryState.PLANNED)
"""Open, and run by no worker."""

log = structlog.get_logger()


def bury(session: Session, worker_ids: Sequence[str], now: datetime) -> None:
    """Count workers out whose process is gone. What they run is lost, and what was sent to them is sent again."""
    session.execute(
        update(Worker).where(Worker.id.in_(worker_ids), Worker.stopped_at.is_(None)).values(stopped_at=now, capacity=0)
    )
    dispatch.send_again(session)  # nobody knows which messages the dead had taken


def lost_attempts(session: Session, settings: Settings, now: datetime, *, is_patient: bool = False) -> Sequence[int]:
    """Running attempts whose worker has stopped or died, or has been silent for longer than its lease.

    Silence does not count where one `is_patient`, because workers could not have been heard.
    """
    silent_since = now - timedelta(seconds=settings.lease_s) if not is_patient else datetime.min.replace(tzinfo=UTC)
    return session.scalars(
        select(Attempt.id)
        .outerjoin(Worker, Worker.id == Attempt.worker_id)
        .where(
            Attempt.state == AttemptState.RUNNING,
            (Worker.id.is_(None)) | (Worker.heartbeat_at < silent_since) | (Worker.stopped_at.is_not(None)),
        )
        .order_by(Attempt.tenant_id, Attempt.id)
        .limit(AT_ONCE)
    ).all()


def take_back(session: Session, attempt_ids: Sequence[int], settings: Settings, now: datetime) -> int:
    """Settle dead attempts at what was reported, release the rest, and queue their queries again; returns how many.

    Samples already settled are kept. A query under which too many attempts have died fails: it may be what kills them.
    """
    attempts = session.scalars(select(Attempt).where(Attempt.id.in_(attempt_ids)).order_by(Attempt.tenant_id)).all()
    taken = 0
    for tenant_id, group in groupby(attempts, key=lambda attempt: attempt.tenant_id):
        ledger.lock_tenant(session, tenant_id)
        for attempt in group:
            taken += _take_back_one(session, attempt.id, attempt.query_id, settings, now)
    return taken


def call_off(session: Session, batch: Batch, state: QueryState, now: datetime) -> None:
    """End every query of a batch that no worker is running, as `cancelled` or `expired`.

    On expiry, samples already paid for are not thrown away: a query that has some ends with the best answer they hold,
    as `budget_stopped` where it waited for money.
    """
    if state is QueryState.EXPIRED:
        _answer_from_kept(session, batch, now)
    session.execute(
        update(QueryRow)
        .where(QueryRow.batch_id == batch.id, QueryRow.state.in_(WAITING))
        .values(state=state, finished_at=now, because=state.value)
    )


def is_anything_over(session: Session, now: datetime) -> bool:
    """Whether a batch is being cancelled or has run out of time."""
    over = or_(Batch.state == BatchState.CANCELLING, _overdue(now), _WAITS_AFTER_ITS_END)
    return session.scalars(select(Batch.id).where(over).limit(1)).first() is not None


def expire_batches(session: Session, now: datetime) -> int:
    """End batches whose completion window has passed; their running queries are told by their workers' heartbeats.

    What those give back instead of ending it, or a dead one leaves, is ended when it waits again.
    """
    for batch in session.scalars(select(Batch).where(_WAITS_AFTER_ITS_END)).all():
        call_off(session, batch, QueryState.EXPIRED, now)
    overdue = session.scalars(select(Batch).where(_overdue(now))).all()
    for batch in overdue:
        batch.state = BatchState.FINALIZING
        batch.finalizing_at = now
        batch.expired_at = now
        session.flush()
        call_off(session, batch, QueryState.EXPIRED, now)
        log.info("batch_expired", batch=batch.id)
    return len(overdue)


def cancel_batches(session: Session, now: datetime) -> None:
    """Call off the waiting queries of batches that are being cancelled."""
    for batch in session.scalars(select(Batch).where(Batch.state == BatchState.CANCELLING)).all():
        call_off(session, batch, QueryState.CANCELLED, now)


def resumable(session: Session, now: datetime, limit: int) -> list[int]:
    """Parked queries whose tenant's caps have room again: as many as the room can pay the first wave of."""
    ids: list[int] = []
    for tenant_id, model in waiting_groups(session, QueryState.PARKED):
        tightest = tightest_cap(session, tenant_id, model, now)
        ids += _affordable(session, tenant_id, model, tightest[0] if tightest else None, limit)
    return ids


def resume_parked(session: Session, now: datetime, limit: int) -> int:
    """Queue again what is resumable; returns how many queries that were."""
    ids = resumable(session, now, limit)
    if ids:
        session.execute(
            update(QueryRow)
            .where(QueryRow.id.in_(ids), QueryRow.state == QueryState.PARKED)
            .values(state=QueryState.QUEUED, parked_because=None)
        )
    return len(ids)


def _overdue(now: datetime) -> ColumnElement[bool]:
    return and_(Batch.state.in_([BatchState.IN_PROGRESS, BatchState.VALIDATING]), Batch.expires_at <= now)


def _affordable(session: Session, tenant_id: str, model: str, left: int | None, limit: int) -> list[int]:
    rows = session.execute(
        select(QueryRow.id, QueryRow.parked_need_nanousd)
        .where(waits_in(QueryState.PARKED, tenant_id, model))
        .order_by(*WANTED_FIRST)
        .limit(limit)
    )
    ids = []
    for query_id, need in rows:
        if left is not None and need is not None:
            if need > left:
                break
            left -= need
        ids.append(query_id)
    return ids


def _take_back_one(session: Session, attempt_id: int, query_id: int, settings: Settings, now: datetime) -> int:
    waves = session.scalars(select(Wave.id).where(Wave.attempt_id == attempt_id, Wave.state == WaveState.HELD)).all()
    for wave_id in waves:
        cost = ledger.expire(session, wave_id, now)
        log.info("wave_expired", wave=wave_id, cost_nanousd=cost)
    lost = session.execute(
        update(Attempt)
        .where(Attempt.id == attempt_id, Attempt.state == AttemptState.RUNNING)
        .values(state=AttemptState.LOST, finished_at=now)
        .returning(Attempt.id)
    ).first()
    if lost is None:
        return 0
    died = (
        select(func.count()).where(Attempt.query_id == query_id, Attempt.state == AttemptState.LOST).scalar_subquery()
    )
    error = {"code": "attempts_exhausted", "message": f"{settings.attempts_max} workers died while answering this."}
    session.execute(
        update(QueryRow)
        .where(QueryRow.id == query_id, QueryRow.state == QueryState.RUNNING, died >= settings.attempts_max)
        .values(state=QueryState.FAILED, finished_at=now, because="attempts_exhausted", error_json=json.dumps(error))
    )
    session.execute(
        update(QueryRow)
        .where(QueryRow.id == query_id, QueryRow.state == QueryState.RUNNING)
        .values(state=QueryState.QUEUED)
    )
    return 1


def _answer_from_kept(session: Session, batch: Batch, now: datetime) -> None:
    rows = session.scalars(
        select(QueryRow).where(QueryRow.batch_id == batch.id, QueryRow.state.in_(WAITING), QueryRow.samples_drawn > 0)
    ).all()
    kept = kept_samples(session, [row.id for row in rows])
    for row in rows:
        outcome, row_id = best_of_kept(session, row, kept.get(row.id, ()))
        if outcome.chosen is None:
            continue
        is_parked = row.state == QueryState.PARKED
        row.because = f"{row.parked_because} limit reached" if is_parked else EXPIRED_BEST
        row.state = QueryState.BUDGET_STOPPED if is_parked else QueryState.EXPIRED
        row.finished_at = now
        row.chosen_sample_id = row_id
        row.confidence = outcome.confidence
        row.correct = outcome.chosen.correct
    session.flush()


def best_of_kept(session: Session, row: QueryRow, kept: tuple[KeptSample, ...]) -> tuple[Outcome, int | None]:
    """What the query's strategy makes of the samples that are there, without any more."""
    plan_row = session.scalars(
        select(PlanRow).where(PlanRow.query_id == row.id).order_by(PlanRow.id.desc()).limit(1)
    ).one()
    version = plan_row.predictor_version
    lessons = lessons_of(session, [version]).get(version, {}).get(plan_row.model, COUNTS_ONLY)
    return best_of(as_query(row, None), as_plan(plan_row, lessons), kept)


_WAITING = select(QueryRow.id).where(QueryRow.batch_id == Batch.id, QueryRow.state.in_(WAITING)).limit(1)
_WAITS_AFTER_ITS_END = and_(
    Batch.state == BatchState.FINALIZING, _WAITING.correlate(Batch).scalar_subquery().is_not(None)
)
"""Batches whose window has passed and that have a query again which waits."""
