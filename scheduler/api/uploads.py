"""How many uploads one API process takes at once, in all and of one tenant."""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler.api.bodies import UPLOAD_PATHS
from scheduler.api.errors import reply
from scheduler.errors import SchedulerError
from scheduler.settings import Settings


class TooManyUploads(SchedulerError):
    """Too many files are being uploaded at once; send this one when another is through."""

    code = "too_many_uploads"
    http_status = 429
    retryable = True


class UploadGate:
    """Middleware, behind authentication, that refuses an upload before its first byte where too many are under way.

    One tenant cannot take all places, so slow uploads of its own keep nobody else from uploading.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._under_way: Counter[str | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is no upload, or has a place."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in UPLOAD_PATHS:
            await self.app(scope, receive, send)
            return
        tenant_id = scope["state"]["identity"].tenant_id
        if (
            self._under_way[tenant_id] >= self.settings.uploads_per_tenant_max
            or self._under_way.total() >= self.settings.uploads_max
        ):
            await reply(TooManyUploads())(scope, receive, send)
            return
        self._under_way[tenant_id] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._under_way[tenant_id] -= 1
