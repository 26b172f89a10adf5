"""Messages to the workers: ids, and wake-ups only. The database is the truth, so a lost message costs a tick."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from celery import Celery
from sqlalchemy import ColumnElement, bindparam, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Attempt
from scheduler.settings import Settings
from scheduler.states import AttemptState

TASK = "allotd.drive"
QUEUE = "allotd"

VISIBILITY_TIMEOUT_S = 600
"""Redis hands an unacknowledged message out again after this long. Ours are acknowledged once their queries have
started, which waits only for room in the worker; a second delivery finds the attempts taken and does nothing."""


def make_celery(broker_url: str) -> Celery:
    """The Celery application that both ends share: late acknowledgement, no prefetching, no results."""
    app = Celery("allotd", broker=broker_url)
    app.conf.update(
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
        },
    )
    return app


def due(session: Session, settings: Settings, now: datetime) -> Sequence[int]:
    """Attempts that no message was sent for, or whose message nobody acted on for too long."""
    return session.scalars(_DUE, {"stale": now - timedelta(seconds=settings.redispatch_s)}).all()


def mark_sent(session: Session, attempt_ids: Sequence[int], now: datetime) -> None:
    """Remember that messages went out."""
    free = _unclaimed(session, Attempt.id.in_(attempt_ids))
    session.execute(update(Attempt).where(Attempt.id.in_(free)).values(dispatched_at=now))


def send_again(session: Session) -> None:
    """Forget which messages went out. One that is delivered twice finds its attempts claimed and does nothing."""
    free = _unclaimed(session, Attempt.dispatched_at.is_not(None))
    session.execute(update(Attempt).where(Attempt.id.in_(free)).values(dispatched_at=None))


def send(app: Celery, attempt_ids: Sequence[int], bundle_size: int) -> None:
    """Send attempts in bundles. Raises kombu's OperationalError where the broker cannot be reached."""
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for start in range(0, len(attempt_ids), bundle_size):
            bundle = list(attempt_ids[start : start + bundle_size])
            app.send_task(TASK, args=[bundle], producer=producer, retry=False)


def _unclaimed(session: Session, condition: ColumnElement[bool]) -> Sequence[int]:
    """Attempts that nobody has claimed, locked. One that is being claimed just now is left out: waiting for it could
    end in a deadlock, and what a message has reached need not be sent."""
    chosen = select(Attempt.id).where(Attempt.state == AttemptState.DISPATCHED, condition)
    return session.scalars(chosen.with_for_update(skip_locked=True)).all()


_DUE = (
    select(Attempt.id)
    .where(
        Attempt.state == AttemptState.DISPATCHED,
        or_(Attempt.dispatched_at.is_(None), Attempt.dispatched_at < bindparam("stale")),
    )
    .order_by(Attempt.id)
)
