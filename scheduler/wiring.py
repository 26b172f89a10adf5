"""What the services need from outside, made once per process from the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.orm import Session, sessionmaker

from scheduler.database import open_database, sessions
from scheduler.settings import Settings

Clock = Callable[[], datetime]


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The outside world as services see it: configuration, the database, the time."""

    settings: Settings
    sessions: sessionmaker[Session]
    clock: Clock


def make_services(settings: Settings) -> Services:
    """Open the database; nothing else is touched."""
    return Services(settings=settings, sessions=sessions(open_database(settings.database_url)), clock=utc_now)


def utc_now() -> datetime:
    """The present instant."""
    return datetime.now(UTC)
