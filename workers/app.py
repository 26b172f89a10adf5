"""The Celery application of the workers: thin tasks over one running `Runtime`."""

from __future__ import annotations

from typing import Any

from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from scheduler.dispatch import TASK, make_celery
from scheduler.logs import configure_logging
from scheduler.settings import Settings
from workers.runtime import Runtime

settings = Settings.from_env()
app = make_celery(settings.broker_url)
runtime = Runtime(settings)


@app.task(name=TASK)
def drive(attempt_ids: list[int]) -> None:
    """Take the attempts that nobody has taken yet, and start them; waits only for room."""
    runtime.admit(attempt_ids)


@setup_logging.connect
def _log(**_: Any) -> None:
    configure_logging(settings)


@worker_init.connect
def _start(**_: Any) -> None:
    runtime.start()


@worker_ready.connect
def _ready(**_: Any) -> None:
    runtime.ready()


@worker_shutting_down.connect
def _drain(**_: Any) -> None:
    runtime.drain()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    runtime.stop()
