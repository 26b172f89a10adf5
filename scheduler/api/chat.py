"""/v1/chat/completions: one query whose client waits for the answer; it goes the same way as a batch's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ConfigDict
from sqlalchemy.exc import OperationalError

from models.tables import QueryRow
from scheduler import cancellation, intake
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Submitter
from scheduler.api.sessions import WithServices
from scheduler.api.shapes import Reply
from scheduler.api.waiting import Endings
from scheduler.database import reading
from scheduler.errors import CapReached, Conflict, EngineError, EngineRejected, SchedulerError
from scheduler.finalization import response_body
from scheduler.requests import Body
from scheduler.states import QueryState
from scheduler.wiring import Services

router = APIRouter(prefix="/v1/chat", tags=["chat"], route_class=StrictRoute)

CLIENT_GONE = 499
"""What proxies log for a client that left; nobody receives it."""

[_SCHEMA], REQUEST_SCHEMAS = msgspec.json.schema_components([Body], ref_template="#/components/schemas/Chat{name}")
REQUEST_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


class TookTooLong(SchedulerError):
    """No answer came in time, and the query was cancelled; send it in a batch, which may take longer."""

    code = "timeout"
    http_status = 504


class ChatReply(Reply):
    """A chat completion. `usage` counts all tokens of all samples; `allotd` says what was done for the answer."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]
    allotd: dict[str, Any]


@router.post(
    "/completions",
    responses=documented(409, 429, 502, 504),
    openapi_extra=REQUEST_BODY,
    response_model=ChatReply,
)
async def complete(request: Request, caller: Submitter, services: WithServices) -> Response | dict[str, Any]:
    """Answer one query. Whoever leaves before the answer cancels it."""
    query_id = await run_in_threadpool(_queue, services, caller.own_tenant_id, await request.body())
    try:
        is_here = await _wait(request, request.app.state.endings, query_id, services)
    except TimeoutError:
        await run_in_threadpool(_cancel, services, query_id)
        raise TookTooLong() from None
    if not is_here:
        await run_in_threadpool(_cancel, services, query_id)
        return Response(status_code=CLIENT_GONE)
    return await run_in_threadpool(_answer, services, query_id)


async def _wait(request: Request, endings: Endings, query_id: int, services: Services) -> bool:
    """Wait for the end of the query; returns whether the client is still there. Raises TimeoutError."""
    ended = asyncio.create_task(endings.wait(query_id))
    gone = asyncio.create_task(_leaves(request))
    try:
        done, _ = await asyncio.wait(
            (ended, gone), timeout=services.settings.engine_timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        ended.cancel()
        gone.cancel()
    if not done:
        raise TimeoutError
    return ended in done


async def _leaves(request: Request) -> None:
    """Return when the client has gone: its body is read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _queue(services: Services, tenant_id: str, body: bytes) -> int:
    with services.sessions.begin() as session:
        return intake.create_interactive(
            session, tenant_id, body, now=services.clock(), samples_limit=services.settings.samples_limit
        )


def _cancel(services: Services, query_id: int) -> None:
    with reading(services.sessions) as session:
        batch_id = session.get_one(QueryRow, query_id).batch_id
    try:
        with services.sessions.begin() as session:
            cancellation.cancel_batch(session, None, batch_id, services.clock())
        with services.sessions.begin() as session:
            cancellation.cancel_waiting(session, batch_id, services.clock())
    except (Conflict, OperationalError):
        return  # it has just ended, or will at its own expiry


def _answer(services: Services, query_id: int) -> dict[str, Any]:
    with reading(services.sessions) as session:
        query = session.get_one(QueryRow, query_id)
        if query.state == QueryState.ANSWERED or query.chosen_sample_id is not None:
            return response_body(session, query)
        raise _refusal(query)


def _refusal(query: QueryRow) -> SchedulerError:
    """Why there is no answer."""
    told = json.loads(query.error_json) if query.error_json else {}
    message, code = told.get("message"), told.get("code")
    match query.state:
        case QueryState.BUDGET_STOPPED:
            return CapReached(f"There was no money for an answer: {query.because}.")
        case QueryState.ABANDONED:
            return Conflict(f"The query was not worth its expected cost: {query.because}.", code="abandoned")
        case QueryState.CANCELLED | QueryState.EXPIRED:
            return Conflict(f"The query was {query.state} before it was answered.", code=str(query.state))
        case _:
            kind = EngineRejected if code == EngineRejected.code else EngineError
            return kind(message or "The query failed.", code=code or EngineError.code)
