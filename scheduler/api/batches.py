"""/v1/batches: OpenAI's batches, with how far they are and what they cost."""

from __future__ import annotations

from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from sqlalchemy import and_, or_, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from models.tables import Batch
from scheduler import cancellation, dry_runs, intake
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Reader, Submitter
from scheduler.api.sessions import Now, Reading, WithServices, Writing
from scheduler.api.shapes import (
    USD_PATTERN,
    Body,
    ExpiresAfter,
    Page,
    Reply,
    ShortText,
    Text,
    page,
    usd,
    usd_or_none,
)
from scheduler.batch_view import batch_object, batch_objects
from scheduler.core.pricing import parse_usd
from scheduler.core.strategies.named import NAMES
from scheduler.database import reading, rest_long
from scheduler.foresight import Foresight
from scheduler.requests import ENDPOINT
from scheduler.states import BatchState
from scheduler.wiring import Services

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=StrictRoute)

LIST_MAX = 100
STRATEGY_PATTERN = f"^({'|'.join(NAMES)})(@[0-9.]+)?$"
WINDOW = "^([1-9]|[1-9][0-9]|[1-6][0-9]{2}|7[01][0-9]|720)h$|^([1-9]|[12][0-9]|30)d$"
METADATA: dict[str, Any] = {
    "maxProperties": intake.METADATA_PAIRS_MAX,
    "propertyNames": {"minLength": 1, "maxLength": intake.METADATA_KEY_MAX},
    "additionalProperties": {"type": "string", "maxLength": intake.METADATA_VALUE_MAX},
}
"""For the OpenAPI document; `scheduler.intake` checks, and says better what is wrong."""
HELD_IN_MEMORY_BYTES = 1024 * 1024
CHUNK_BYTES = 1024 * 1024


class BatchBody(Body):
    """A batch to be opened on an uploaded file.

    Metadata may hold, once for all lines and as strings, what a line's `allotd` object may; `cost_max_usd` then limits
    the whole batch.
    """

    input_file_id: ShortText
    endpoint: Annotated[ShortText, Field(json_schema_extra={"enum": [ENDPOINT]})]
    completion_window: Annotated[
        ShortText, Field(description="Hours or days, up to 30 days.", json_schema_extra={"pattern": WINDOW})
    ]
    metadata: Annotated[dict[Text, Text] | None, Field(json_schema_extra=METADATA)] = None
    output_expires_after: Annotated[
        ExpiresAfter | None,
        Field(description="When the output and error file are deleted, counted from the end of the batch."),
    ] = None


class RequestCounts(Reply):
    """Lines in all, with an answer, and ended without one."""

    total: int
    completed: int
    failed: int


class Parked(Reply):
    """Queries that wait for a limit to be raised or to turn."""

    because: str | None
    queries: int


class BatchProgress(Reply):
    """How far a batch is, what it costs, and whom."""

    tenant: str
    states: dict[str, int]
    spent_nanousd: int
    spent_usd: str
    held_nanousd: int
    held_usd: str
    limit_nanousd: int | None
    limit_usd: str | None
    parked: list[Parked]
    samples: int
    queries_per_s: float | None
    eta_s: float | None


class BatchReply(Reply):
    """A batch in OpenAI's shape; `allotd` is ours."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: dict[str, Any] | None
    input_file_id: str | None
    completion_window: str
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: dict[str, Any]
    metadata: dict[str, str] | None
    allotd: BatchProgress


class BadLine(Reply):
    """A line that cannot be run, and why."""

    line: int
    custom_id: str | None
    code: str
    message: str


class ReachReply(Reply):
    """What an amount of money is expected to bring."""

    budget_nanousd: int
    budget_usd: str
    right: Annotated[float, Field(description="Expected right answers.")]
    used_nanousd: int
    used_usd: str
    abandoned: Annotated[int, Field(description="Queries that the amount is better spent without.")]
    price: Annotated[str, Field(description="What one more dollar buys.")]


class DryRunReply(Reply):
    """What a file would do and cost if it were submitted now."""

    object: Literal["dry_run"] = "dry_run"
    lines: int
    runnable: int
    bad: Annotated[list[BadLine], Field(description="The first hundred.")]
    low_nanousd: int
    low_usd: str
    expected_nanousd: int
    expected_usd: str
    worst_nanousd: int
    worst_usd: str
    limit_nanousd: int | None
    limit_usd: str | None
    reaches: Annotated[list[ReachReply], Field(description="One for each amount asked for.")]


@router.post("", responses=documented(409, 429))
def create_batch(
    body: BatchBody,
    caller: Submitter,
    session: Writing,
    now: Now,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="The same key and request return the same batch.",
            min_length=1,
            max_length=255,
            pattern="^[ -~]+$",
        ),
    ] = None,
) -> BatchReply:
    """Open a batch on an uploaded file."""
    batch = intake.create_batch(
        session,
        caller.own_tenant_id,
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_expires_after_s=body.output_expires_after.seconds if body.output_expires_after is not None else None,
        idempotency_key=idempotency_key,
        now=now,
    )
    return _reply(session, batch)


@router.get("", responses=documented())
def list_batches(
    caller: Reader,
    session: Reading,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 20,
) -> Page[BatchReply]:
    """The batches, newest first."""
    statement = select(Batch).where(Batch.interactive.is_(False))
    if caller.tenant_id is not None:
        statement = statement.where(Batch.tenant_id == caller.tenant_id)
    if after is not None:
        last = cancellation.find_batch(session, caller.tenant_id, after)
        older = or_(Batch.created_at < last.created_at, and_(Batch.created_at == last.created_at, Batch.id < last.id))
        statement = statement.where(older)
    found = session.scalars(statement.order_by(Batch.created_at.desc(), Batch.id.desc()).limit(limit + 1)).all()
    replies = [BatchReply.model_validate(each) for each in batch_objects(session, found[:limit])]
    return page(replies, has_more=len(found) > limit)


AMOUNTS_PATTERN = f"^{USD_PATTERN[1:-1]}(,{USD_PATTERN[1:-1]}){{0,9}}$"
WHAT_IF = Query(max_length=256, description="Amounts, as 5,10,20.", json_schema_extra={"pattern": AMOUNTS_PATTERN})
DRY_RUN_BODY = {
    "requestBody": {
        "required": True,
        "description": "The file's lines.",
        "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/dry-run", responses=documented(), openapi_extra=DRY_RUN_BODY)
async def dry_run(
    request: Request,
    caller: Submitter,
    services: WithServices,
    now: Now,
    strategy: Annotated[Text | None, Query(max_length=64, json_schema_extra={"pattern": STRATEGY_PATTERN})] = None,
    max_cost_usd: Annotated[str | None, Query(max_length=64, json_schema_extra={"pattern": USD_PATTERN})] = None,
    what_if_usd: Annotated[str | None, WHAT_IF] = None,
) -> DryRunReply:
    """What a file would do and cost, and what it would reach for other amounts; nothing is kept or changed."""
    what_if = [parse_usd(part) for part in what_if_usd.split(",")] if what_if_usd is not None else []
    limit = parse_usd(max_cost_usd) if max_cost_usd is not None else None
    tenant_id = caller.own_tenant_id
    with SpooledTemporaryFile(HELD_IN_MEMORY_BYTES) as spool:
        async for chunk in request.stream():
            await run_in_threadpool(spool.write, chunk)
        run = await run_in_threadpool(
            _dry_run, services, request.app.state.foresight, spool, tenant_id, now, strategy, what_if
        )
    return DryRunReply(
        lines=run.lines,
        runnable=run.runnable,
        bad=[
            BadLine(line=bad.line, custom_id=bad.custom_id or bad.said, code=bad.code, message=bad.message)
            for bad in run.bad
        ],
        low_nanousd=run.low_nanousd,
        low_usd=usd(run.low_nanousd),
        expected_nanousd=run.expected_nanousd,
        expected_usd=usd(run.expected_nanousd),
        worst_nanousd=run.worst_nanousd,
        worst_usd=usd(run.worst_nanousd),
        limit_nanousd=limit,
        limit_usd=usd_or_none(limit),
        reaches=[
            ReachReply(
                budget_nanousd=reach.budget_nanousd,
                budget_usd=usd(reach.budget_nanousd),
                right=reach.right,
                used_nanousd=reach.used_nanousd,
                used_usd=usd(reach.used_nanousd),
                abandoned=reach.abandoned,
                price=reach.price,
            )
            for reach in run.reaches
        ],
    )


@router.get("/{batch_id}", responses=documented())
def get_batch(batch_id: str, caller: Reader, session: Reading) -> BatchReply:
    """One batch."""
    return _reply(session, cancellation.find_batch(session, caller.tenant_id, batch_id))


@router.post("/{batch_id}/cancel", responses=documented(409))
def cancel_batch(batch_id: str, caller: Submitter, services: WithServices, now: Now) -> BatchReply:
    """Cancel a batch: what waits is cancelled at once, what runs within a wave; what is finished stays readable."""
    with services.sessions.begin() as session:
        cancellation.cancel_batch(session, caller.tenant_id, batch_id, now)
    with suppress(OperationalError), services.sessions.begin() as session:  # the daemon does it at its next tick
        cancellation.cancel_waiting(session, batch_id, now)
    with reading(services.sessions) as session:
        return _reply(session, cancellation.find_batch(session, caller.tenant_id, batch_id))


def _reply(session: Session, batch: Batch) -> BatchReply:
    return BatchReply.model_validate(batch_object(session, batch))


def _dry_run(
    services: Services,
    foresight: Foresight,
    spool: IO[bytes],
    tenant_id: str,
    now: Now,
    strategy: str | None,
    what_if: list[int],
) -> dry_runs.DryRun:
    spool.seek(0)
    chunks = iter(lambda: spool.read(CHUNK_BYTES), b"")
    with reading(services.sessions) as session:
        rest_long(session)
        predictor = foresight.predictor(session)
        return dry_runs.dry_run(session, chunks, services.settings, tenant_id, now, predictor, strategy, what_if)
