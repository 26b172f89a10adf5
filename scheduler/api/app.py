"""The HTTP application: every router, and what every request passes through."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler.api import (
    alerts,
    batches,
    caps,
    chat,
    engines,
    errors,
    feedback,
    files,
    ledger,
    llms,
    predictors,
    prices,
    probes,
    spend,
    tenants,
    webhooks,
)
from scheduler.api.bodies import BodyLimit
from scheduler.api.rates import RequestRates
from scheduler.api.security import Authentication
from scheduler.api.uploads import UploadGate
from scheduler.api.waiting import Endings
from scheduler.foresight import Foresight
from scheduler.metrics import Metrics
from scheduler.wiring import Services

ROUTERS = (
    files,
    batches,
    chat,
    llms,
    tenants,
    caps,
    prices,
    ledger,
    spend,
    feedback,
    engines,
    alerts,
    webhooks,
    predictors,
    probes,
)
UNMATCHED = "unmatched"

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)

log = structlog.get_logger()


def create_app(services: Services) -> FastAPI:
    """The application on these services; it opens nothing of its own."""
    metrics = Metrics(services)
    app = FastAPI(
        title="allotd",
        summary="Spends test-time compute where it buys the most, within budgets.",
        version="0.1.0",
        docs_url=None,  # the pages of both fetch scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.services = services
    app.state.metrics = metrics
    app.state.endings = Endings(services)
    app.state.foresight = Foresight()
    errors.register(app)
    for module in ROUTERS:
        app.include_router(module.router)
    app.add_middleware(UploadGate, settings=services.settings)
    app.add_middleware(Authentication, services=services, rates=RequestRates(services.settings.broker_url))
    app.add_middleware(BodyLimit, settings=services.settings)
    app.add_middleware(Outermost, metrics=metrics)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


class Outermost:
    """Middleware around everything: names the request, adds headers, counts, and answers for what nobody caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        status, began = 0, time.perf_counter()

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (*SECURITY_HEADERS, (b"x-request-id", request_id.encode()))
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_on)
            except Exception:
                log.exception("request_crashed", method=scope["method"], path=scope["path"])
                if not status:
                    await errors.unexpected()(scope, receive, send_on)
            finally:
                self._count(scope, status, time.perf_counter() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = scope["method"] if route != UNMATCHED else ""
        self.metrics.requests.labels(route, method, str(status)).inc()
        self.metrics.request_seconds.labels(route, method).observe(seconds)
        log.debug("request_served", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.endings.close()


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the framework's own validation error, which this API never sends."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        document["paths"]["/metrics"]["get"]["security"].append({})  # not needed on this machine
        schemas = document["components"]["schemas"]
        schemas.update({f"Chat{name}": schema for name, schema in chat.REQUEST_SCHEMAS.items()})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
