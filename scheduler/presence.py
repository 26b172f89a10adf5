"""Which worker processes live: each holds a lock that nobody but its death, or its goodbye, can release.

Beside a SQLite database that is a locked file, which the operating system unlocks when the process ends. On PostgreSQL
it is an advisory lock of a connection of its own, which the server releases when that connection breaks. So a worker
killed with -9 is known to be dead within a second or two. Silence for longer than the lease still counts for what holds
its lock and does nothing: a process that hangs, a network that is cut.
"""

from __future__ import annotations

import fcntl
import select
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.tables import Worker
from scheduler.database import beside
from scheduler.outages import in_words

ADVISORY, FILE = "advisory", "file"
"""The kinds of locks, as `workers.presence` says them."""

SEED = 0x616C6C6F74647770  # "allotdwp"
"""Keeps our keys apart from others' in PostgreSQL's one space of advisory locks."""

AGAIN_S = 0.5
"""How soon a lost connection is replaced."""

SURE_AFTER = {FILE: timedelta(0), ADVISORY: timedelta(seconds=2 * AGAIN_S)}
"""For how long a lock must be missed: a connection may break under a worker that lives, a locked file may not."""

RESTART_GRACE = timedelta(seconds=10)
"""For so long after a start of PostgreSQL's server nobody is missed: it has forgotten every lock."""

log = structlog.get_logger()


class Presence(Protocol):
    """The lock of one worker process."""

    @property
    def kind(self) -> str | None:
        """What holds it, once something does."""
        ...

    def leave(self) -> None:
        """Let go of it."""
        ...


def present(database_url: str, worker_id: str, ping_s: float) -> Presence:
    """Hold a worker's lock from now on."""
    url = sa.make_url(database_url)
    if url.get_backend_name() == "postgresql":
        return AdvisoryPresence(url, worker_id, ping_s)
    return FilePresence(beside(url, "workers"), worker_id)


class Watch:
    """Looks again and again who is there, and says who has died."""

    def __init__(self) -> None:
        self._missed_since: dict[str, datetime] = {}

    def dead(self, session: Session, now: datetime) -> list[str]:
        """Workers that held their lock once, have not said goodbye, and hold it no more."""
        kind, missed = _missed(session)
        self._missed_since = {worker_id: self._missed_since.get(worker_id, now) for worker_id in missed}
        return sorted(worker_id for worker_id, since in self._missed_since.items() if now - since >= SURE_AFTER[kind])


class FilePresence:
    """A file beside the SQLite database, locked as long as this process lives. Nothing where the database has none."""

    def __init__(self, directory: Path | None, worker_id: str) -> None:
        self._path = directory / worker_id if directory is not None else None
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            self._file = self._path.open("w")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def kind(self) -> str | None:
        """A file, where there is one."""
        return FILE if self._path is not None else None

    def leave(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()


class AdvisoryPresence:
    """A connection to PostgreSQL that holds an advisory lock, replaced by a thread as soon as it breaks."""

    def __init__(self, url: sa.URL, worker_id: str, ping_s: float) -> None:
        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._worker_id = worker_id
        self._ping_s = ping_s
        self._has_held = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="presence", daemon=True)
        self._thread.start()

    @property
    def kind(self) -> str | None:
        """An advisory lock, from the first time it was held."""
        return ADVISORY if self._has_held else None

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()
        self._thread.join(timeout=2 * AGAIN_S)

    def _hold(self) -> None:
        while not self._left.is_set():
            try:
                self._hold_once()
            except DBAPIError as error:
                log.info("presence_lost", worker=self._worker_id, message=in_words(error))
            self._left.wait(AGAIN_S)

    def _hold_once(self) -> None:
        """Hold the lock for as long as one connection lives."""
        with self._engine.connect() as connection:
            if not connection.scalar(_LOCK, {"id": self._worker_id, "seed": SEED}):
                return  # a connection that we lost holds it still
            self._has_held = True
            driver = connection.connection.driver_connection
            assert driver is not None
            waiting = select.poll()
            waiting.register(driver.fileno(), select.POLLIN)
            while not self._left.is_set():
                for _ in range(max(1, round(self._ping_s / AGAIN_S))):
                    if waiting.poll(AGAIN_S * 1000) or self._left.is_set():
                        break  # the server says something unasked: that it is going, mostly
                connection.execute(text("SELECT 1"))


def tidy(engine: Engine, worker_ids: Sequence[str]) -> None:
    """Remove the files of workers that were counted out."""
    directory = beside(engine.url, "workers")
    if directory is not None and engine.dialect.name == "sqlite":
        for worker_id in worker_ids:
            (directory / worker_id).unlink(missing_ok=True)


def _missed(session: Session) -> tuple[str, Sequence[str]]:
    engine = session.get_bind()
    assert isinstance(engine, Engine)
    if engine.dialect.name == "postgresql":
        return ADVISORY, session.scalars(_ABSENT, {"seed": SEED, "grace": RESTART_GRACE}).all()
    directory = beside(engine.url, "workers")
    holders = session.scalars(sa.select(Worker.id).where(Worker.stopped_at.is_(None), Worker.presence == FILE)).all()
    return FILE, [name for name in holders if directory is not None and _is_unlocked(directory / name)]


def _is_unlocked(path: Path) -> bool:
    """Whether the file is there and its process is not."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked; or not there, and then nothing is known
        return False
    return True


_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended(:id, :seed))")
_ABSENT = text(
    """
    SELECT id FROM workers
    WHERE stopped_at IS NULL AND presence = 'advisory' AND now() - pg_postmaster_start_time() > :grace
    AND NOT EXISTS (
        SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE datname = current_database() AND locktype = 'advisory' AND objsubid = 1 AND granted
        AND (classid::bigint << 32) | objid::bigint = hashtextextended(workers.id, :seed)
    )
    """
)
