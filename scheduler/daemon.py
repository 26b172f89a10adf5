"""The daemon: one leader that takes in batches, plans, dispatches, takes back what was lost, and finishes batches."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Connection, Engine, and_, func, select, true
from sqlalchemy.exc import DBAPIError

from models.tables import Batch, LlmRow, QueryRow
from scheduler import alerts, champion, dispatch, files, pacing, presence, probes, recovery, shortage
from scheduler.audit.schedule import auditing
from scheduler.budgets import allot_window
from scheduler.champion import Champion
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.courier import delivering
from scheduler.database import looking, open_database, reading
from scheduler.drafts import draft_plans
from scheduler.finalization import finalize
from scheduler.intake import advance_intake
from scheduler.outages import in_words
from scheduler.peers import share_out
from scheduler.planning import choose_window, fund_window
from scheduler.probing_ahead import Prober, make_prober, probing
from scheduler.settings import Settings
from scheduler.states import QUERY_OPEN, BatchState
from scheduler.tuning import tuning
from scheduler.unread import IS_CALLED_OFF_UNREAD
from scheduler.wiring import Services, make_services

LEADER_KEY = 0x616C6C6F7464  # "allotd"
"""The advisory lock that makes one daemon of a PostgreSQL database its leader."""

STANDBY_S = 1.0
"""How often a daemon that is not the leader asks again."""

INTAKE_LINES = 1000
"""Lines taken in per transaction: a few tens of milliseconds under SQLite's one write lock."""

SELDOM = 5.0
"""In ticks, the time from one look for lost, overdue and parked work to the next: a second. Nothing in flight waits for
them."""

SLOWER, SLOWEST = 1.5, 2.5
"""While there is nothing to do, each wait is so many times the last one, up to so many times the usual one. A look
takes five milliseconds of the processor from whatever else runs on it.
"""

log = structlog.get_logger()


@dataclass(slots=True)
class Daemon:
    """The leader's work, one tick at a time. Every step is a transaction of its own and safe to do twice.

    A step first looks, reading only: SQLite has one write lock, and a tick with nothing to do must not take it from the
    workers.
    """

    services: Services
    celery: Celery
    predictor: Champion = field(default_factory=Champion)
    rotation: DeficitRoundRobin = field(default_factory=DeficitRoundRobin)
    prober: Prober | None = None
    _short: shortage.Shortage = field(default_factory=dict)
    _seldom_due: float = 0.0
    _watch: presence.Watch = field(init=False)
    _patient_until: datetime = field(init=False)

    def __post_init__(self) -> None:
        self._watch = presence.Watch()
        self._be_patient()

    def tick(self, passed: float = 1.0) -> bool:
        """Do everything that is due; returns whether there may be more to do at once.

        `passed` is how long was waited since the last tick, in usual waits; a busy tick counts as one.
        """
        steps = [self.take_in, self.follow_champion, self.plan, self.send, self.finish]
        self._seldom_due -= passed
        if self._seldom_due <= 0:
            self._seldom_due = SELDOM
            steps = [self.bury, self.take_back, self.call_off, self.resume, self.announce, self.learn, *steps]
            steps.append(self.forget_files)
        busy = False
        for step in steps:
            busy |= self._guarded(step)
        return busy

    def take_in(self) -> bool:
        """Read on in uploaded batches, as soon as some worker has said which models there are."""
        with looking(self.services.sessions) as session:
            waiting = [*session.scalars(_CALLED_OFF), *session.scalars(_COMING)]
            if not waiting:
                return False
            if session.scalar(select(func.count()).select_from(LlmRow)) == 0:
                waiting = list(session.scalars(_CALLED_OFF))
        for batch_id in waiting:
            with self.services.sessions.begin() as session:
                advance_intake(session, batch_id, self.services.settings, self.services.clock(), lines=INTAKE_LINES)
        return bool(waiting)

    def bury(self) -> bool:
        """Count out the workers whose process is gone."""
        now = self.services.clock()
        with reading(self.services.sessions) as session:
            dead = self._watch.dead(session, now)
        if not dead:
            return False
        with self.services.sessions.begin() as session:
            recovery.bury(session, dead, now)
        presence.tidy(self.services.sessions.kw["bind"], dead)
        log.warning("workers_died", workers=dead)
        return True

    def take_back(self) -> bool:
        """Take attempts from workers that are gone."""
        settings, now = self.services.settings, self.services.clock()
        is_patient = now < self._patient_until
        with looking(self.services.sessions) as session:
            if not recovery.lost_attempts(session, settings, now, is_patient=is_patient):
                return False
        with self.services.sessions.begin() as session:
            lost = recovery.lost_attempts(session, settings, now, is_patient=is_patient)
            taken = recovery.take_back(session, lost, settings, now)
        if taken:
            log.warning("attempts_taken_back", attempts=taken)
        return bool(taken)

    def call_off(self) -> bool:
        """End what was cancelled or has run out of time."""
        with looking(self.services.sessions) as session:
            if not recovery.is_anything_over(session, self.services.clock()):
                return False
        with self.services.sessions.begin() as session:
            recovery.cancel_batches(session, self.services.clock())
            return recovery.expire_batches(session, self.services.clock()) > 0

    def resume(self) -> bool:
        """Queue parked queries whose caps have room again."""
        limit = self.services.settings.window_size
        with looking(self.services.sessions) as session:
            if not recovery.resumable(session, self.services.clock(), limit):
                return False
        with self.services.sessions.begin() as session:
            return recovery.resume_parked(session, self.services.clock(), limit) > 0

    def announce(self) -> bool:
        """Write new alerts into the log; webhooks have a thread of their own."""
        with looking(self.services.sessions) as session:
            news = alerts.unannounced(session)
        if not news:
            return False
        for alert in news:
            log.warning("alert", kind=alert.kind, subject=alert.subject, alert=alert.id, message=alert.message)
        with self.services.sessions.begin() as session:
            alerts.mark_announced(session, [alert.id for alert in news], self.services.clock())
        return True

    def follow_champion(self) -> bool:
        """Take up a promoted predictor, and drop one whose file is gone or changed."""
        with looking(self.services.sessions) as session:
            finding = self.predictor.look(session)
        if finding is not None:
            with self.services.sessions.begin() as session:
                champion.record(session, finding, self.services.clock())
        return False

    def learn(self) -> bool:
        """Let plain priors see what was sampled since they last looked."""
        with looking(self.services.sessions) as session:
            self.predictor.plain.read_on(session)
        return False

    def plan(self) -> bool:
        """Plan and fund one window."""
        settings, now = self.services.settings, self.services.clock()
        with looking(self.services.sessions) as session:
            is_awaited = self.prober is not None and self.prober.is_answering
            ready = probes.is_ready(now, settings.probe_patience_s) if is_awaited else true()
            short = shortage.still_short(session, self._short)
            rows = choose_window(session, self.rotation, settings, now, and_(ready, shortage.is_not_short(short)))
            drafts = draft_plans(session, rows, self.predictor, settings, now) if rows else []
            drafts = share_out(drafts, self.predictor.past)
            window = allot_window(session, drafts, settings, now, may_abandon=self.predictor.is_learned)
            drafts, more = shortage.affordable(session, window.drafts)
            self._short = {**short, **more}
        if not drafts:
            return False
        with self.services.sessions.begin() as session:
            funded = fund_window(session, drafts, now)
            pacing.remember(session, window.moves, now)
        log.debug("window_planned", queries=len(drafts), funded=len(funded))
        return True

    def send(self) -> bool:
        """Send messages for funded attempts, after the commit that funded them."""
        settings, now = self.services.settings, self.services.clock()
        with looking(self.services.sessions) as session:
            attempt_ids = dispatch.due(session, settings, now)
        if not attempt_ids:
            return False
        dispatch.send(self.celery, attempt_ids, settings.bundle_size)
        with self.services.sessions.begin() as session:
            dispatch.mark_sent(session, attempt_ids, now)
        return True

    def finish(self) -> bool:
        """Complete batches without open queries."""
        with looking(self.services.sessions) as session:
            batch_ids = session.scalars(_THROUGH).all()
        finished = False
        for batch_id in batch_ids:
            with self.services.sessions.begin() as session:
                finished |= finalize(session, session.get_one(Batch, batch_id), self.services.clock())
        return finished

    def forget_files(self) -> bool:
        """Delete files whose time is up."""
        with looking(self.services.sessions) as session:
            if not files.expired(session, self.services.clock()):
                return False
        with self.services.sessions.begin() as session:
            return files.delete_expired(session, self.services.clock()) > 0

    def _guarded(self, step: Callable[[], bool]) -> bool:
        """A step that fails is logged and tried again in the next tick; the others go on."""
        try:
            return step()
        except BrokerError as error:
            log.error("step_failed", step=step.__name__, error=str(error))
        except DBAPIError as error:
            self._be_patient()
            log.error("step_failed", step=step.__name__, message=in_words(error))
        except Exception:
            log.exception("step_failed", step=step.__name__)
        return False

    def _be_patient(self) -> None:
        """For two heartbeats no silence counts: while the database was away or full, nobody could be heard."""
        silence = timedelta(seconds=2 * self.services.settings.heartbeat_s)
        self._patient_until = self.services.clock() + silence


def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; where another daemon leads, stand by and take over when it is gone."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine = open_database(settings.database_url)
    while not stop.is_set():
        with leadership(engine) as leads:
            if not leads():
                stop.wait(STANDBY_S)
                continue
            log.info("daemon_leads")
            services = make_services(settings)
            prober = make_prober(services)
            daemon = Daemon(services=services, celery=dispatch.make_celery(settings.broker_url), prober=prober)
            with delivering(services), auditing(services), tuning(services), probing(prober):
                wait = 1.0
                while not stop.is_set() and leads():
                    busy = daemon.tick(wait)
                    wait = next_wait(wait, busy=busy)
                    if not busy:
                        stop.wait(wait * settings.tick_s)
    log.info("daemon_stopped")


def next_wait(last: float, *, busy: bool) -> float:
    """How long to wait after a tick, in usual waits: longer and longer while there is nothing to do."""
    return 1.0 if busy else min(last * SLOWER, SLOWEST)


@contextmanager
def leadership(engine: Engine) -> Iterator[Callable[[], bool]]:
    """A question that says, each time it is asked, whether this process leads."""
    if engine.dialect.name == "sqlite":
        with _file_lock(engine) as leads:
            yield leads
    else:
        with _advisory_lock(engine) as leads:
            yield leads


@contextmanager
def _file_lock(engine: Engine) -> Iterator[Callable[[], bool]]:
    path = Path(f"{engine.url.database}.daemon.lock")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield lambda: False
        else:
            yield lambda: True


@contextmanager
def _advisory_lock(engine: Engine) -> Iterator[Callable[[], bool]]:
    """Held by one connection, so it is gone with the process, or with the server, which the question notices."""
    connection = _locked_connection(engine)
    try:
        yield lambda: connection is not None and _answers(connection)
    finally:
        if connection is not None:
            connection.detach()  # the lock lives as long as the connection: it must not go back to the pool
            connection.close()


def _locked_connection(engine: Engine) -> Connection | None:
    try:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if connection.scalar(select(func.pg_try_advisory_lock(LEADER_KEY))):
            return connection
        connection.close()
    except DBAPIError as error:
        log.error("database_unavailable", message=in_words(error))
    return None


def _answers(connection: Connection) -> bool:
    try:
        connection.scalar(select(1))
    except DBAPIError:
        return False
    return True


# Statements of every tick are built once: building one costs more than running it.
_COMING = select(Batch.id).where(Batch.state == BatchState.VALIDATING).order_by(Batch.created_at)
_CALLED_OFF = select(Batch.id).where(IS_CALLED_OFF_UNREAD).order_by(Batch.created_at)
_OPEN_QUERY = select(QueryRow.id).where(QueryRow.batch_id == Batch.id, QueryRow.state.in_(QUERY_OPEN)).limit(1)
_THROUGH = (
    select(Batch.id)
    .where(
        Batch.state.in_([BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING]),
        _OPEN_QUERY.correlate(Batch).scalar_subquery().is_(None),
    )
    .order_by(Batch.created_at)
)
"""Batches that have begun and have no open query, each looked up in its index."""
