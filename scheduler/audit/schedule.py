"""When the daemon looks through the books: as it begins to lead, and every so often from then on."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from functools import partial

import structlog
from sqlalchemy.exc import DBAPIError

from scheduler import audit
from scheduler.beside import beside
from scheduler.wiring import Services

AGAIN_S = 30.0
"""How soon an audit is tried again that the database broke off."""
STOP_S = 1.0
"""How long a stop waits for an audit that runs; the process may end under it, for it only reads."""

log = structlog.get_logger()


def auditing(services: Services) -> AbstractContextManager[None]:
    """Look through the books beside whatever happens in this context, in a thread: nothing waits for it."""
    return beside(partial(_look_again_and_again, services), name="auditing", stop_s=STOP_S)


def look(services: Services) -> bool:
    """One audit, recorded and, where the books do not balance, logged as an error; returns whether they do."""
    verdict = audit.verify(services.sessions, services.clock)
    with services.sessions.begin() as session:
        audit.record(session, verdict)
    return verdict.is_balanced


def _look_again_and_again(services: Services, stop: threading.Event) -> None:
    wait_s = 0.0
    while not stop.wait(wait_s):
        try:
            look(services)
            wait_s = services.settings.verify_every_s
        except DBAPIError as error:
            log.error("audit_failed", error=str(error))
            wait_s = min(AGAIN_S, services.settings.verify_every_s)
        except Exception:
            log.exception("audit_failed")
            wait_s = services.settings.verify_every_s
