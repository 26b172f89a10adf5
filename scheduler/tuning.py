"""When challengers are trained: as asked, on a schedule, as what is known doubles, and on drift.

Each is trained in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy import func, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.tables import Label, PredictorRow, QueryRow
from scheduler import predictors
from scheduler.beside import beside
from scheduler.database import reading
from scheduler.drift import DRIFT_MIN, drift
from scheduler.examples import EXAMPLES_MAX
from scheduler.settings import Settings
from scheduler.states import QUERY_FINAL, PredictorState
from scheduler.wiring import Services

LOOK_S = 1.0
"""How often it is looked whether a challenger was asked for."""
DUE_EVERY_S = 60.0
"""How often it is looked whether there is enough that is new, or the predictor in use has drifted."""
LABELS_AMONG = 50_000
"""Labels are looked for among so many of the newest settled queries: where nothing is labelled, none can be found."""
STOP_S = 5.0
SCHEDULED = "its time had come"
GROWN = "there is twice as much to learn from as last time"
COMPLAINT_CHARACTERS = 300

log = structlog.get_logger()


def tuning(services: Services) -> AbstractContextManager[None]:
    """Train what is due beside whatever happens in this context: a thread that waits for processes."""
    return beside(partial(_look_again_and_again, services), name="tuning", stop_s=STOP_S)


def ask_if_due(services: Services, *, looks_far: bool = True) -> str | None:
    """The version to be trained now: one that was asked for, or (where one `looks_far`) asked for here as it is due."""
    now = services.clock()
    with reading(services.sessions) as session:
        waiting = session.scalars(
            select(PredictorRow.version)
            .where(PredictorRow.state == PredictorState.CHALLENGER)
            .order_by(PredictorRow.created_at)
            .limit(1)
        ).first()
        if waiting is not None:
            return waiting
        because = _due_because(session, services) if looks_far else None
    if because is None:
        return None
    with services.sessions.begin() as session:
        return predictors.ask(session, because, now).version


def train(services: Services, version: str, stop: threading.Event) -> None:
    """Train in a process of its own; one that dies is kept out with what it said last."""
    command = (sys.executable, "-m", "scheduler.retuning", version)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 (our own module)
        complaints: list[str] = []
        reader = threading.Thread(target=lambda: complaints.extend(process.stderr or ()), daemon=True)
        reader.start()
        while process.poll() is None:
            if stop.wait(LOOK_S / 10):
                process.kill()
        reader.join(STOP_S)
    if stop.is_set() or process.returncode == 0:
        return  # what was broken off is begun anew by the next daemon that leads
    last = next((line.strip() for line in reversed(complaints) if line.strip()), "it said nothing")
    because = f"training ended with code {process.returncode}: {last[:COMPLAINT_CHARACTERS]}"
    log.error("training_failed", version=version, because=because)
    with services.sessions.begin() as session:
        predictors.conclude(session, version, is_better=False, because=because, card={}, now=services.clock())


def _due_because(session: Session, services: Services) -> str | None:
    settings = services.settings
    newest = session.scalars(select(PredictorRow).order_by(PredictorRow.created_at.desc()).limit(1)).first()
    since = newest.created_at if newest is not None else None
    age_s = (services.clock() - since).total_seconds() if since is not None else None
    if age_s is None or age_s >= settings.retune_every_s:
        return SCHEDULED if _are_new(session, settings.retune_examples_min, since) else None
    if age_s < DUE_EVERY_S:
        return None
    if newest is not None and _has_doubled(session, settings, newest):
        return GROWN
    champion = predictors.champion(session)
    if champion is None or not _are_new(session, DRIFT_MIN, since):
        return None  # what is known was looked at by the newest already
    return drift(session, champion, json.loads(champion.card_json))


def _has_doubled(session: Session, settings: Settings, newest: PredictorRow) -> bool:
    """Whether as much was learned since as the newest predictor was taught by: a long batch learns from itself."""
    taught = json.loads(newest.card_json).get("examples")
    if taught is None or taught > EXAMPLES_MAX // 2:
        return False  # its training crashed, or no more would be read
    return _are_new(session, max(taught, settings.retune_examples_min), newest.created_at)


def _are_new(session: Session, wanted: int, since: datetime | None) -> bool:
    """Whether so many queries are known to be right or wrong that ended, or of which somebody told it, since then."""
    settled = select(QueryRow.id, QueryRow.correct, QueryRow.finished_at).where(QueryRow.state.in_(sorted(QUERY_FINAL)))
    recent = settled.order_by(QueryRow.id.desc()).limit(LABELS_AMONG).subquery()
    known = select(recent.c.id).where(recent.c.correct.is_not(None))
    if since is not None:
        told = select(Label.query_id).where(Label.created_at > since)
        known = known.where(or_(recent.c.finished_at > since, recent.c.id.in_(told)))
    some = known.limit(wanted).subquery()
    return (session.scalar(select(func.count()).select_from(some)) or 0) >= wanted


def _look_again_and_again(services: Services, stop: threading.Event) -> None:
    far_in_s = 0.0
    while not stop.wait(LOOK_S):
        far_in_s -= LOOK_S
        try:
            version = ask_if_due(services, looks_far=far_in_s <= 0)
            if far_in_s <= 0:
                far_in_s = DUE_EVERY_S
            if version is not None:
                train(services, version, stop)
        except DBAPIError as error:
            log.error("tuning_failed", error=str(error))
        except Exception:
            log.exception("tuning_failed")
