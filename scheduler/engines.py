"""Which engines work for us, and which are trusted no more: a quarantined one gets no work until it is released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session

from models.tables import Attempt, Worker
from scheduler.alerts import raise_alert
from scheduler.errors import Conflict, NotFound, SchedulerError
from scheduler.settings import Settings
from scheduler.states import AttemptState
from scheduler.types import AlertKind

BECAUSE_MAX = 500
"""Characters of a reason that are kept."""


class EngineState(StrEnum):
    """How a worker stands; one that is quarantined is so first of all."""

    WORKING = "working"
    QUARANTINED = "quarantined"
    SILENT = "silent"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStatus:
    """A worker and the engine behind it. `engine` is the model server's address, None where there is no server."""

    worker_id: str
    engine: str | None
    state: EngineState
    capacity: int
    running: int
    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None
    quarantined_because: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Distrust:
    """A worker whose engine did what no honest engine does."""

    worker_id: str
    because: str


def quarantine_all(session: Session, found: Sequence[Distrust], now: datetime) -> list[SchedulerError | None]:
    """Give these workers' engines no more work, and tell of it; every live worker that asks the same engine with them.

    One that is quarantined already stays so, for the reason it was.
    """
    for distrust in found:
        engine = session.scalar(select(Worker.engine).where(Worker.id == distrust.worker_id))
        same = [Worker.id == distrust.worker_id]
        if engine is not None:
            same = [Worker.engine == engine, Worker.stopped_at.is_(None)]
        ids = session.scalars(
            select(Worker.id).where(*same, Worker.quarantined_because.is_(None)).order_by(Worker.id).with_for_update()
        ).all()
        because = distrust.because[:BECAUSE_MAX].replace("\x00", "\ufffd")
        session.execute(update(Worker).where(Worker.id.in_(ids)).values(quarantined_because=because))
        if distrust.worker_id not in ids:
            continue
        at = f" at {engine}" if engine else ""
        raise_alert(
            session,
            AlertKind.ENGINE_QUARANTINED,
            distrust.worker_id,
            message=(
                f"The engine{at} of worker {distrust.worker_id} gets no more work. {because} Mend it, then let it work "
                f"again with `allotd engine release {distrust.worker_id}`."
            ),
            now=now,
            period=now.isoformat(),  # each quarantine is news, also on the day of the last one
            details={"engine": engine, "workers": list(ids), "because": because},
        )
    return [None for _ in found]


def release(session: Session, worker_id: str, now: datetime, lease_s: float) -> EngineStatus:
    """Trust a worker's engine again, and with it every worker that asks the same one. Raises NotFound, Conflict."""
    worker = session.get(Worker, worker_id)
    if worker is None:
        raise NotFound(f"There is no worker '{worker_id}'; `allotd engine list` shows those there are.")
    if worker.quarantined_because is None:
        raise Conflict(f"Worker '{worker_id}' is not quarantined.")
    same = Worker.id == worker_id if worker.engine is None else Worker.engine == worker.engine
    session.execute(
        update(Worker).where(same, Worker.quarantined_because.is_not(None)).values(quarantined_because=None)
    )
    session.expire_all()
    [status] = _statuses(session, [Worker.id == worker_id], now, lease_s)
    return status


def list_engines(session: Session, now: datetime, lease_s: float, *, every: bool = False) -> list[EngineStatus]:
    """Workers and their engines, the newest first; those that have stopped only where `every` asks for them."""
    return _statuses(session, [] if every else [Worker.stopped_at.is_(None)], now, lease_s)


def engine_of(settings: Settings) -> str | None:
    """The addresses of the model servers that a worker with these settings asks, without any password in them."""
    if settings.engine != "vllm":
        return None
    return ", ".join(map(_without_password, settings.llm_urls))


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _statuses(session: Session, conditions: Sequence[object], now: datetime, lease_s: float) -> list[EngineStatus]:
    runs = and_(Attempt.worker_id == Worker.id, Attempt.state == AttemptState.RUNNING)
    running = select(func.count()).select_from(Attempt).where(runs).correlate(Worker).scalar_subquery()
    rows = session.execute(
        select(Worker, running.label("running")).where(*conditions).order_by(Worker.started_at.desc(), Worker.id)  # type: ignore[arg-type]
    )
    alive_since = now - timedelta(seconds=lease_s)
    return [
        EngineStatus(
            worker_id=row.Worker.id,
            engine=row.Worker.engine,
            state=_state(row.Worker, alive_since),
            capacity=row.Worker.capacity,
            running=row.running,
            started_at=row.Worker.started_at,
            heartbeat_at=row.Worker.heartbeat_at,
            stopped_at=row.Worker.stopped_at,
            quarantined_because=row.Worker.quarantined_because,
        )
        for row in rows
    ]


def _state(worker: Worker, alive_since: datetime) -> EngineState:
    if worker.stopped_at is not None:
        return EngineState.STOPPED
    if worker.quarantined_because is not None:
        return EngineState.QUARANTINED
    return EngineState.WORKING if worker.heartbeat_at > alive_since else EngineState.SILENT
