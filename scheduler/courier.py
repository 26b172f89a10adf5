"""The thread of the leading daemon that carries alerts to webhooks, so that no receiver holds up a tick."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractContextManager
from functools import partial

import structlog
from sqlalchemy.exc import DBAPIError

from scheduler import delivery
from scheduler.beside import beside
from scheduler.database import reading
from scheduler.wiring import Services

EVERY_S = 1.0
"""From one look for deliveries that are due to the next."""

GOODBYE_S = 2.0
"""How long the daemon's end waits for a round under way. What it had not written down by then is sent again later,
under the same id."""

log = structlog.get_logger()


def delivering(services: Services) -> AbstractContextManager[None]:
    """Deliver in the background as long as this lasts."""
    return beside(partial(_deliver_until, services), name="courier", stop_s=GOODBYE_S)


def deliver_due(services: Services) -> int:
    """Try everything that is due once; returns how much that was. No transaction is open while a receiver is asked."""
    with reading(services.sessions) as session:
        letters = delivery.due(session, services.clock())
    if letters:
        receipts = asyncio.run(delivery.deliver_all(letters, services.settings))
        with services.sessions.begin() as session:
            delivery.record(session, letters, receipts, services.settings, services.clock())
    return len(letters)


def _deliver_until(services: Services, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            done = deliver_due(services)
        except DBAPIError as error:
            log.error("delivery_failed", error=str(error))
            done = 0
        except Exception:
            log.exception("delivery_failed")
            done = 0
        if not done:
            stop.wait(EVERY_S)
