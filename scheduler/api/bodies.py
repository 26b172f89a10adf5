"""How request bodies are read: limited in size while they arrive, and JSON only of the strict kind."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler.api.errors import refuse_body, reply
from scheduler.errors import InvalidRequest, TooLarge
from scheduler.jsonlines import Fault, decode
from scheduler.settings import Settings

UPLOAD_PATHS = frozenset({"/v1/files", "/v1/batches/dry-run"})
MULTIPART_EXTRA_BYTES = 64 * 1024
"""Room for the form around an uploaded file."""


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


class StrictRoute(APIRoute):
    """A route that reads its JSON strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


class BodyLimit:
    """Middleware that refuses a body as soon as it is known to be too large, by its declared or its actual length."""

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
        limit = self._limit(scope)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            await reply(_too_large(limit))(scope, receive, send)
            return
        await self.app(scope, _counting(receive, limit), send)

    def _limit(self, scope: Scope) -> int:
        if scope["path"] in UPLOAD_PATHS:
            return self.settings.file_bytes_max + MULTIPART_EXTRA_BYTES
        return self.settings.body_bytes_max


def _counting(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise refuse_body(_too_large(limit))
        return message

    return counted


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than the {limit} bytes this address accepts; split it.")
