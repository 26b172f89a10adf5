"""Probes of queries before their turn comes: a thread of the daemon asks a small model what it makes of each prompt."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy.exc import DBAPIError

from scheduler import probes
from scheduler.alerts import raise_alert
from scheduler.beside import beside
from scheduler.database import reading
from scheduler.errors import EngineUnavailable, SchedulerError
from scheduler.probing import hidden_states_or_refusals, served_name
from scheduler.types import AlertKind
from scheduler.wiring import Services

LOOK_S = 0.5
"""How often it is looked whether queries wait without a probe: a quarter of the time that they wait for it."""
AWAY_S = 5.0
"""How long a server is left alone that does not answer."""
AT_ONCE = 64
FORGET_EVERY = 10_000
"""Probes kept between two looks for those that are too old."""
ALERT_AFTER = timedelta(minutes=1)
STOP_S = 5.0

log = structlog.get_logger()


def probing(services: Services) -> AbstractContextManager[None]:
    """Probe queries beside whatever happens in this context, where a probe server is configured."""
    url = services.settings.probe_url
    if url is None:
        return nullcontext()
    return beside(partial(_look_again_and_again, Prober(services=services, url=url)), name="probing", stop_s=STOP_S)


@dataclass(slots=True)
class Prober:
    """Asks the probe server at `url` about queries whose turn comes next."""

    services: Services
    url: str
    _view: str | None = None
    _away_since: datetime | None = None
    _kept: int = field(default=0)

    def advance(self) -> bool:
        """Probe some queries; returns whether there may be more. Raises EngineUnavailable where the server is away."""
        with reading(self.services.sessions) as session:
            texts = probes.wanted(session, AT_ONCE)
        if not texts:
            return False
        try:
            self._view = view = self._view or served_name(self.url)
            vectors = hidden_states_or_refusals(view, list(texts.values()), self.url)
        except SchedulerError as error:
            self._view = None  # it may come back as another one
            self._complain(error)
            raise
        self._away_since = None
        with self.services.sessions.begin() as session:
            probes.keep(session, view, dict(zip(texts, vectors, strict=True)))
            self._kept += len(texts)
            if self._kept >= FORGET_EVERY:
                self._kept = 0
                probes.forget(session)
        return len(texts) == AT_ONCE

    def _complain(self, error: SchedulerError) -> None:
        """Into the log at once, and to people where it lasts."""
        now = self.services.clock()
        if self._away_since is None:
            self._away_since = now
            log.warning("probe_unavailable", url=self.url, message=error.message)
        if now - self._away_since < ALERT_AFTER:
            return
        with self.services.sessions.begin() as session:
            raise_alert(
                session,
                AlertKind.PROBE_UNAVAILABLE,
                self.url,
                message=f"The probe server at {self.url} has not answered for a minute, so queries are planned without "
                f"its view. {error.message} Start it again, or unset ALLOTD_PROBE_URL.",
                now=now,
            )


def _look_again_and_again(prober: Prober, stop: threading.Event) -> None:
    wait_s = LOOK_S
    while not stop.wait(wait_s):
        try:
            wait_s = 0.0 if prober.advance() else LOOK_S
        except EngineUnavailable:
            wait_s = AWAY_S
        except DBAPIError as error:
            wait_s = AWAY_S
            log.error("probing_failed", error=str(error))
        except Exception:
            wait_s = AWAY_S
            log.exception("probing_failed")
