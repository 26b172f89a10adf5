"""The API as a process: uvicorn on one address until it is told to stop."""

from __future__ import annotations

import uvicorn

from scheduler.api.app import create_app
from scheduler.api.connections import impatient
from scheduler.logs import configure_logging
from scheduler.settings import Settings
from scheduler.wiring import make_services

KEEP_ALIVE_S = 75
"""Longer than common proxies keep an idle connection, so that they close it, not we under a request."""
SHUTDOWN_S = 5
"""How long waiting clients keep a stopping server up; their queries go on without them."""


def run_api(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    configure_logging(settings)
    config = uvicorn.Config(
        create_app(make_services(settings)),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=impatient(settings.body_grace_s),
        limit_concurrency=settings.connections_max,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    uvicorn.Server(config).run()
