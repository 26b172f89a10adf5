"""`allotd api | daemon | worker`: one part in the foreground, for a deployment of several processes or hosts."""

# ruff: noqa: PLC0415 (what serves takes seconds to import, and the other commands need none of it)

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scheduler.settings import Settings

PORT = 8377
"""Free on most hosts: not vLLM's 8000 and not a web developer's 8080."""

Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for every network.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 for any free one.")]


def api(host: Host = "127.0.0.1", port: Port = PORT) -> None:
    """Serve the HTTP API, configured by ALLOTD_* variables."""
    from scheduler.api.serve import run_api

    run_api(_settings(), host, port)


def daemon() -> None:
    """Run the daemon that plans and dispatches. Of several on one database, one leads and the others stand by."""
    from scheduler.daemon import run
    from scheduler.logs import configure_logging

    settings = _settings()
    configure_logging(settings)
    run(settings)


def worker() -> None:
    """Run a worker that drives queries on the model server."""
    _settings()  # what is wrong with them is said here, not in the worker's log
    os.execv(sys.executable, [sys.executable, "-m", "workers"])  # noqa: S606 (nothing here may import the workers)


def _settings() -> Settings:
    """The settings, after a look at whether the database is of this version."""
    from scheduler.cli import schema
    from scheduler.settings import Settings

    settings = Settings.from_env()
    schema.require(settings.database_url)
    return settings
