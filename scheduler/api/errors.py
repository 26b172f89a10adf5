"""How errors look from outside: OpenAI's shape, whatever went wrong and wherever."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match, Route

from scheduler.errors import Conflict, InvalidRequest, SchedulerError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's error types where they are not told from the client's or the server's fault alone."""

RETRYABLE_STATUSES = frozenset({408, 409, 429, *range(500, 600)})
"""What OpenAI's clients try again unless `x-should-retry` says no; asking again could spend again."""

log = structlog.get_logger()


class ErrorDetail(BaseModel):
    """What went wrong: a sentence, its kind, the parameter at fault, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every reply that is not a success."""

    error: ErrorDetail


class Busy(SchedulerError):
    """The database cannot be reached just now; try again."""

    code = "database_unavailable"
    http_status = 503
    retryable = True


DESCRIPTIONS = {
    400: "The request cannot be understood.",
    401: "The API key is missing, wrong or revoked.",
    403: "The API key lacks the scope this needs.",
    404: "There is no such object.",
    408: "The body arrived too slowly.",
    409: "The object's state does not allow this.",
    413: "The body is larger than this server accepts.",
    429: "A limit is reached.",
    502: "The model server failed.",
    503: "The service cannot answer just now.",
    504: "The answer took too long.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error replies of a route, for its OpenAPI description; those that every route has come by themselves."""
    every = {400, 401, 403, 404, 408, 413, 429, 503, *statuses}
    return {status: {"model": ErrorReply, "description": DESCRIPTIONS[status]} for status in sorted(every)}


def translate(error: Exception) -> SchedulerError | None:
    """The error a client is told of; None for what it must not hear about."""
    if isinstance(error, SchedulerError):
        return error if error.http_status != 500 else None
    if isinstance(error, IntegrityError):
        return Conflict("Somebody else changed the same object at the same time; look at it and try again.")
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return Busy()
    return None


def reply(error: SchedulerError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The error as a response."""
    status = error.http_status
    code, param = error.attributes.get("code", error.code), error.attributes.get("param")
    told = body(status, error.message, str(code), None if param is None else str(param))
    response = JSONResponse(told, status, headers)
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if status in RETRYABLE_STATUSES:
        response.headers["x-should-retry"] = "true" if error.retryable else "false"
        if error.retryable:
            response.headers["retry-after"] = str(error.attributes.get("retry_after_s", 1))
    return response


def body(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    if code == "insufficient_quota":
        kind = "insufficient_quota"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def unexpected() -> JSONResponse:
    """The reply to a fault of ours; the log has the rest."""
    return reply(SchedulerError("Something went wrong inside allotd; its log says what."))


def register(app: FastAPI) -> None:
    """Translate every error that a route or the framework raises."""
    app.add_exception_handler(SchedulerError, _known)
    app.add_exception_handler(IntegrityError, _known)
    app.add_exception_handler(OperationalError, _known)
    app.add_exception_handler(InterfaceError, _known)
    app.add_exception_handler(PoolTimeoutError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _framework)


async def _known(request: Request, error: Exception) -> JSONResponse:
    known = translate(error)
    if known is None:
        log.error("request_failed", path=request.url.path, exc_info=error)
        return unexpected()
    if known.http_status >= 500:
        log.warning("request_not_served", path=request.url.path, code=known.code, error=str(error))
    return reply(known)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *names = first["loc"] or ("body",)
    shown = [str(name) for name in names if not str(name).startswith("(")]  # tags of alternatives, which are no names
    param = ".".join(shown) or None
    message = f"{param or f'The {place}'}: {first['msg']}."
    return reply(InvalidRequest(message, param=param))


async def _framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error.detail, SchedulerError):
        return reply(error.detail)
    if error.status_code == 404:
        message = f"There is nothing at {request.method} {request.url.path}."
        return JSONResponse(body(404, message, "not_found"), 404)
    if error.status_code == 405:
        allowed = allowed_methods(request)
        message = f"{request.method} is not possible at {request.url.path}; it takes {', '.join(allowed)}."
        return JSONResponse(body(405, message, "method_not_allowed"), 405, {"allow": ", ".join(allowed)})
    return JSONResponse(body(error.status_code, str(error.detail), "invalid_request"), error.status_code, error.headers)


def allowed_methods(request: Request) -> list[str]:
    """Every method that some route takes at the request's path."""
    routes = [route for route in request.app.router.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    # An address of its own is none of the objects beside it: /v1/batches/dry-run is no batch.
    fitting = [route for route in fitting if route.path == request.url.path] or fitting
    return sorted({method for route in fitting for method in route.methods or ()})


def refuse_body(error: SchedulerError) -> HTTPException:
    """An error from inside body parsing, in the one class that FastAPI lets through from there."""
    return HTTPException(error.http_status, detail=error)
