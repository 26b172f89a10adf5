"""How long a client may take over the head of a request: uvicorn itself would wait for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def impatient(head_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, closing a connection whose request's head is not whole in time."""

    class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """One connection."""

        _closing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait_for_head()
            else:
                self._head_is_there()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_is_there()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            if self._closing is None:
                self._closing = asyncio.get_running_loop().call_later(head_timeout_s, self.transport.close)

        def _head_is_there(self) -> None:
            if self._closing is not None:
                self._closing.cancel()
                self._closing = None

    return Impatient
