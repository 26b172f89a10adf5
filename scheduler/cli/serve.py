"""`allotd api | daemon | worker`: one part in the foreground, for a deployment of several processes or hosts."""

# ruff: noqa: PLC0415 (what serves takes seconds to import, and the other commands need none of it)

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

PORT = 8377
"""Free on most hosts: not vLLM's 8000 and not a web developer's 8080."""

Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for every network.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 for any free one.")]


def api(host: Host = "127.0.0.1", port: Port = PORT) -> None:
    """Serve the HTTP API, configured by ALLOTD_* variables."""
    from scheduler.api.serve import run_api
    from scheduler.settings import Settings

    run_api(Settings.from_env(), host, port)


def daemon() -> None:
    """Run the daemon that plans and dispatches. Of several on one database, one leads and the others stand by."""
    from scheduler.daemon import run
    from scheduler.logs import configure_logging
    from scheduler.settings import Settings

    settings = Settings.from_env()
    configure_logging(settings)
    run(settings)


def worker() -> None:
    """Run a worker that drives queries on the model server."""
    from scheduler.settings import Settings

    Settings.from_env()  # what is wrong with it is said here, not in the worker's log
    os.execv(sys.executable, [sys.executable, "-m", "workers"])  # noqa: S606 (nothing here may import the workers)
