"""/healthz, /readyz and /metrics: for whoever watches this process. No API key, except for metrics from afar."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import case, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from migrations import run as migrations
from models.tables import Worker
from scheduler.api.errors import DESCRIPTIONS, ErrorReply
from scheduler.api.security import bearer, identify
from scheduler.api.sessions import WithServices
from scheduler.api.shapes import Reply
from scheduler.database import reading
from scheduler.errors import Forbidden
from scheduler.wiring import Services

router = APIRouter(tags=["probes"])

BROKER_TIMEOUT_S = 1.0


class Health(Reply):
    """This process answers."""

    status: Literal["ok"] = "ok"


class Readiness(Reply):
    """What this service needs to do its work, each "ok" or what is wrong with it."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


@router.get("/healthz")
async def healthz() -> Health:
    """Whether this process lives."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Something it needs is missing."}})
def readyz(services: WithServices, response: Response) -> Readiness:
    """Whether work that is submitted now will be done: database, migrations, broker, a live worker."""
    checks = {
        "database": _database(services),
        "migrations": _migrations(services),
        "broker": _broker(services.settings.broker_url),
        "workers": _workers(services),
    }
    is_ready = set(checks.values()) == {"ok"}
    response.status_code = 200 if is_ready else 503
    return Readiness(status="ready" if is_ready else "not_ready", checks=checks)


METRICS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format."},
    **{status: {"model": ErrorReply, "description": DESCRIPTIONS[status]} for status in (400, 401, 403, 404, 429, 503)},
}


@router.get("/metrics", response_class=Response, responses=METRICS_RESPONSES)
def metrics(
    request: Request,
    services: WithServices,
    _credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
) -> Response:
    """Figures for Prometheus. Open to this machine; from elsewhere an admin's key is needed, for they name tenants."""
    if not _is_loopback(request) and not identify(services, request).is_admin:
        raise Forbidden("Metrics are for admins and for scrapers on this machine.")
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _is_loopback(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _database(services: Services) -> str:
    try:
        with reading(services.sessions) as session:
            session.execute(select(1))
    except SQLAlchemyError:
        return "the database cannot be reached"
    return "ok"


def _migrations(services: Services) -> str:
    try:
        with reading(services.sessions) as session:
            found = session.scalar(text("SELECT version_num FROM alembic_version"))
    except SQLAlchemyError:
        found = None
    if found == _wanted_revision():
        return "ok"
    return f"the database is at revision {found or 'none'}, not {_wanted_revision()}; run `allotd db upgrade`"


@cache
def _wanted_revision() -> str:
    return migrations.newest()


def _broker(url: str) -> str:
    if not url.startswith(("redis://", "rediss://")):
        return "ok"  # other brokers have no probe here; a worker that lives has reached it
    try:
        with Redis.from_url(url, socket_timeout=BROKER_TIMEOUT_S, socket_connect_timeout=BROKER_TIMEOUT_S) as client:
            client.ping()
    except (RedisError, OSError):
        return "the broker cannot be reached"
    return "ok"


def _workers(services: Services) -> str:
    alive_since = services.clock() - timedelta(seconds=services.settings.lease_s)
    alive = (Worker.heartbeat_at > alive_since, Worker.stopped_at.is_(None))
    trusted = func.sum(case((Worker.quarantined_because.is_(None), 1), else_=0))
    try:
        with reading(services.sessions) as session:
            count, working = session.execute(select(func.count(), trusted).where(*alive)).one()
    except SQLAlchemyError:
        return "unknown without the database"
    if not count:
        return "no worker is alive"
    return "ok" if working else "every live worker's engine is quarantined; see `allotd engine list`"
