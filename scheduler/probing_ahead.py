"""Probes of queries before their turn comes: a thread of the daemon asks a small model what it makes of each prompt."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy.exc import DBAPIError

from scheduler import probes
from scheduler.alerts import raise_alert
from scheduler.beside import beside
from scheduler.database import looking
from scheduler.errors import EngineError, EngineRejected, EngineUnavailable
from scheduler.probing import hidden_states_or_errors, served_view
from scheduler.types import AlertKind
from scheduler.wiring import Services

LOOK_S = 0.5
"""How often it is looked whether queries wait without a probe: a quarter of the time that they wait by default."""
AWAY_S = 5.0
"""How long a server is left alone that does not answer."""
AT_ONCE = 16
"""Prompts asked together: what they show is kept when the last of them is read."""
FORGET_EVERY = 10_000
"""Probes kept between two looks for those that are too old."""
MINUTES = 3
ALERT_AFTER = timedelta(minutes=MINUTES)
"""Longer than a small model takes to load."""
CALM = 7
"""Of so many places and one that are left out at the head of a queue, one is tried after a round in time."""
STOP_S = 5.0

log = structlog.get_logger()


def make_prober(services: Services) -> Prober | None:
    """Who asks the probe server; None where none is configured."""
    url = services.settings.probe_url
    return Prober(services=services, url=url) if url else None


def probing(prober: Prober | None) -> AbstractContextManager[None]:
    """Probe queries beside whatever happens in this context."""
    if prober is None:
        return nullcontext()
    return beside(partial(_look_again_and_again, prober), name="probing", stop_s=STOP_S)


@dataclass(slots=True)
class Prober:
    """Asks the probe server at `url` about queries whose turn comes next."""

    services: Services
    url: str
    _view: str | None = None
    _away_since: datetime | None = None
    _kept: int = FORGET_EVERY
    _skipped: dict[probes.Group, int] = field(default_factory=dict)
    """Places at the head of a queue whose turn comes before their prompts could be read."""
    _unread: set[int] = field(default_factory=set)
    """Queries whose prompts were not read by a server that reads others."""

    @property
    def is_answering(self) -> bool:
        """Whether there is something to wait for: the server answered when it was asked last."""
        return self._view is not None

    def lose_sight(self) -> None:
        """Whatever went wrong, nobody waits until the server has answered again."""
        self._view = None

    def advance(self) -> bool:
        """Probe some queries; returns whether there may be more. Raises EngineUnavailable where the server is away."""
        view = self._view or self._greet()
        with looking(self.services.sessions) as session:
            unread = probes.wanted(session, AT_ONCE, self._skipped)
        texts = {query_id: each.text for query_id, each in unread.items()}
        if not texts:
            self._away_since = None
            was_ahead, self._skipped = bool(self._skipped), {}
            return was_ahead
        told = dict(zip(texts, hidden_states_or_errors(view, list(texts.values()), self.url), strict=True))
        vectors = {query_id: each for query_id, each in told.items() if not isinstance(each, EngineError)}
        errors = [each for each in told.values() if isinstance(each, EngineError)]
        if errors:
            log.warning("prompts_not_probed", prompts=len(errors), message=errors[0].message)
        given_up = self._given_up({i: each for i, each in told.items() if isinstance(each, EngineError)})
        if not vectors:
            self._view = None
            view = self._greet()  # where that succeeds, it may be these prompts that cannot be read
            ill = [error for error in errors if isinstance(error, EngineUnavailable)]
            if len(ill) > 1:  # so many of them are not
                self._view = None
                self._complain(ill[0])
                raise ill[0]
        self._away_since = None
        refused = dict.fromkeys(given_up)
        with self.services.sessions.begin() as session:
            self._skip(probes.late(session, unread))
            probes.keep(session, view, {**vectors, **refused})
            self._kept += len(texts)
            if self._kept >= FORGET_EVERY:
                self._kept = 0
                probes.forget(session)
        return True

    def _given_up(self, failed: Mapping[int, EngineError]) -> list[int]:
        """Those that were refused, and those that a server which reads others failed at twice."""
        given_up = [i for i, error in failed.items() if isinstance(error, EngineRejected) or i in self._unread]
        self._unread = (self._unread | set(failed)) - set(given_up) if failed else set()
        return given_up

    def _skip(self, late: Mapping[probes.Group, int]) -> None:
        """Read further ahead in queues whose turn came first, and less far in those that were read in time."""
        for group, count in late.items():
            places = self._skipped.pop(group, 0)
            places = min(places + 2 * count, probes.AHEAD) if count else places * CALM // (CALM + 1)
            if places:
                self._skipped[group] = places

    def _greet(self) -> str:
        """See whether the server reads a plain prompt; returns its view's name."""
        try:
            self._view = served_view(self.url)
        except EngineUnavailable as error:
            self._complain(error)
            raise
        log.info("probe_answers", url=self.url, view=self._view)
        return self._view

    def _complain(self, error: EngineUnavailable) -> None:
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
                message=f"The probe server at {self.url} has read no prompt for {MINUTES} minutes, so queries are "
                f"planned without its view. {error.message} Start it again, or unset ALLOTD_PROBE_URL.",
                now=now,
            )


def _look_again_and_again(prober: Prober, stop: threading.Event) -> None:
    wait_s = 0.0
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
            prober.lose_sight()
            log.exception("probing_failed")
