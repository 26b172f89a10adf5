"""How request bodies are read: limited in size while they arrive, and JSON only of the strict kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler.api.errors import refuse_body, reply
from scheduler.errors import InvalidRequest, SchedulerError, TooLarge
from scheduler.jsonlines import Fault, decode
from scheduler.settings import Settings

SHOWN_MAX = 64
"""Characters of an unknown parameter that an error message repeats."""
UPLOAD_PATHS = frozenset({"/v1/files", "/v1/batches/dry-run"})
MULTIPART_EXTRA_BYTES = 64 * 1024
"""Room for the form around an uploaded file."""


FORM_FILES_MAX, FORM_FIELDS_MAX = 1, 64
"""Each file of a form takes a megabyte of memory before it goes to disk."""


class TooSlow(SchedulerError):
    """The body arrived too slowly; send it again over a faster connection, or in smaller files."""

    code = "request_timeout"
    http_status = 408
    retryable = True


class StrictRequest(Request):
    """A request whose JSON is refused where it is NaN, too deep, half a surrogate pair, or a number past all bounds."""

    async def json(self) -> Any:
        """The decoded body."""
        if not hasattr(self, "_strict_json"):
            decoded = decode(await self.body())
            if isinstance(decoded, Fault):
                raise refuse_body(InvalidRequest(f"The body {decoded.problem}."))
            self._strict_json = decoded
        return self._strict_json

    def form(self, **_limits: Any) -> Any:
        """The form, with no more files and fields than this API knows."""
        return super().form(max_files=FORM_FILES_MAX, max_fields=FORM_FIELDS_MAX)


class StrictRoute(APIRoute):
    """A route that reads its JSON strictly, and refuses parameters it does not know: one misspelt would do nothing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a strict request."""
        handler = super().get_route_handler()
        known = {field.alias for field in get_flat_dependant(self.dependant).query_params}

        async def strict(request: Request) -> Response:
            for name in request.query_params:
                if name not in known:
                    raise InvalidRequest(_unknown(name, known), param=name, code="unknown_parameter")
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _unknown(name: str, known: Collection[str]) -> str:
    """What to say of a parameter that a route does not know."""
    shown = name if len(name) <= SHOWN_MAX else f"{name[:SHOWN_MAX]}..."
    return f"The parameter {shown!r} is not known; known here: {', '.join(sorted(known)) or 'none'}."


class BodyLimit:
    """Middleware that refuses a body as soon as it is known to be too large, or while it arrives too slowly."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting what it carries."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if b"%00" in scope.get("raw_path", b"") or b"%00" in scope["query_string"]:
            await reply(InvalidRequest("The address holds a NUL character; leave it out."))(scope, receive, send)
            return
        body = _Body(scope, receive, self._limit(scope), self.settings)
        if body.bytes_declared > body.bytes_max:
            await reply(_too_large(body.bytes_max))(scope, receive, body.closing(send))
            return
        await self.app(scope, body.receive, body.closing(send))

    def _limit(self, scope: Scope) -> int:
        if scope["path"] in UPLOAD_PATHS:
            return self.settings.file_bytes_max + MULTIPART_EXTRA_BYTES
        return self.settings.body_bytes_max


class _Body:
    """One request's body while it arrives."""

    def __init__(self, scope: Scope, receive: Receive, bytes_max: int, settings: Settings) -> None:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        self.bytes_max = bytes_max
        self.bytes_declared = int(declared) if declared.isdigit() else 0
        self._is_complete = not self.bytes_declared and b"transfer-encoding" not in headers
        self._receive = receive
        self._settings = settings
        self._seen = 0
        self._began = time.monotonic()

    async def receive(self) -> Message:
        """The next part. Raises what FastAPI lets through where there are too many bytes, or too few in the time."""
        if self._is_complete:
            return await self._receive()  # nothing but the news that the client has left
        try:
            message = await asyncio.wait_for(self._receive(), self._left_s())
        except TimeoutError:
            raise refuse_body(TooSlow()) from None
        self._seen += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._seen > self.bytes_max:
            raise refuse_body(_too_large(self.bytes_max))
        return message

    def closing(self, send: Send) -> Send:
        """The same, but a reply before the end of the body ends the connection: nobody waits for the rest."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._is_complete:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        return send_on

    def _left_s(self) -> float:
        allowed = self._settings.body_grace_s + self._seen / self._settings.body_bytes_per_s_min
        return max(0.0, self._began + allowed - time.monotonic())


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than the {limit} bytes this address accepts; split it.")
