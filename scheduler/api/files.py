"""/v1/files: OpenAI's files. Uploads go to disk while they arrive; output files grow while their batch runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Response, UploadFile
from fastapi.responses import StreamingResponse

from models.tables import File
from scheduler import files
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Reader, Submitter
from scheduler.api.sessions import Now, Reading, WithServices, Writing
from scheduler.api.shapes import Page, Reply, page
from scheduler.errors import InvalidRequest
from scheduler.wiring import Services

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictRoute)

CHUNK_BYTES = 1024 * 1024


class FileReply(Reply):
    """A file in OpenAI's shape."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None


class DeletedReply(Reply):
    """What was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post("", responses=documented(409))
def upload(
    file: UploadFile,
    purpose: Annotated[Literal["batch"], Form(description="Only files for batches are taken.")],
    caller: Submitter,
    services: WithServices,
    session: Writing,
    now: Now,
    anchor: Annotated[
        Literal["created_at"] | None,
        Form(alias="expires_after[anchor]", description="What the file's life is counted from."),
    ] = None,
    seconds: Annotated[
        int | None,
        Form(
            alias="expires_after[seconds]",
            ge=files.EXPIRES_AFTER_MIN_S,
            le=files.EXPIRES_AFTER_MAX_S,
            description="When the file is deleted by itself.",
        ),
    ] = None,
) -> FileReply:
    """Upload a JSONL file of requests."""
    if (anchor is None) != (seconds is None):
        missing = "anchor" if anchor is None else "seconds"
        raise InvalidRequest(
            f"expires_after needs an anchor and seconds; expires_after[{missing}] is missing.",
            param=f"expires_after[{missing}]",
        )
    stored = files.store_upload(
        session,
        caller.own_tenant_id,
        file.filename or "",
        purpose,
        iter(lambda: file.file.read(CHUNK_BYTES), b""),
        bytes_max=services.settings.file_bytes_max,
        now=now,
        expires_after_s=seconds,
    )
    return FileReply(**files.file_object(session, stored))


@router.get("", responses=documented())
def list_files(
    caller: Reader,
    session: Reading,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=files.LIST_MAX)] = files.LIST_MAX,
    order: Literal["asc", "desc"] = "desc",
) -> Page[FileReply]:
    """The files, newest first. An output file's size is told by itself only, for it is counted then."""
    found, has_more = files.list_files(
        session, caller.tenant_id, purpose=purpose, after=after, limit=limit, order=order
    )
    return page([FileReply(**files.file_object(session, file, counted=False)) for file in found], has_more=has_more)


@router.get("/{file_id}", responses=documented())
def get_file(file_id: str, caller: Reader, session: Reading) -> FileReply:
    """One file; for a batch's output as long as it is now."""
    file = files.find_file(session, caller.tenant_id, file_id)
    return FileReply(**files.file_object(session, file))


@router.delete("/{file_id}", responses=documented(409))
def delete_file(file_id: str, caller: Submitter, session: Writing, now: Now) -> DeletedReply:
    """Forget a file."""
    files.delete_file(session, caller.tenant_id, file_id, now)
    return DeletedReply(id=file_id)


CONTENT: dict[str, Any] = {
    "description": "The file's bytes.",
    "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
}


@router.get("/{file_id}/content", response_class=StreamingResponse, responses={200: CONTENT, **documented()})
def get_content(file_id: str, caller: Reader, services: WithServices, session: Reading) -> StreamingResponse:
    """A file's bytes as they are now: an output file ends with the query that finished last."""
    file = files.find_file(session, caller.tenant_id, file_id)
    return StreamingResponse(_chunks(services, file), media_type="application/jsonl")


HEAD_OF_CONTENT = {**CONTENT, "description": "Its length in bytes."}


@router.head("/{file_id}/content", response_class=Response, responses={200: HEAD_OF_CONTENT, **documented()})
def head_content(file_id: str, caller: Reader, session: Reading) -> Response:
    """How long a file's content is now. Ranges of it cannot be asked for."""
    file = files.find_file(session, caller.tenant_id, file_id)
    length = str(files.file_object(session, file)["bytes"])
    return Response(media_type="application/jsonl", headers={"content-length": length, "accept-ranges": "none"})


def _chunks(services: Services, file: File) -> Iterator[bytes]:
    """The content, with no transaction open while the client takes its time."""
    with services.sessions() as session:
        content = None
        while True:
            session.connection(execution_options={"read_only": True})
            content = content or iter(files.file_content(session, file))
            chunk = next(content, None)
            session.commit()
            if chunk is None:
                return
            yield chunk
