"""The engine that asks a vLLM server, over its OpenAI-compatible HTTP interface.

aiohttp, not httpx: it spends a fraction of the CPU per streamed chunk, and its connector finds a free connection in a
dict where httpx's pool walks all requests in flight for each new one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog
import tenacity

from scheduler.engine import Abort, Generation, GenerationRequest, Progress
from scheduler.errors import EngineError, EngineRejected, EngineUnavailable
from scheduler.tokens import counter_for
from scheduler.types import Json, Llm, Usage
from workers.engines.stream import ChatStream, fault

log = structlog.get_logger()

TIMEOUT_S = 600.0
SILENCE_S = 300.0
CONNECT_TIMEOUT_S = 10.0
TRIES = 4
BACKOFF_S = 0.5
KEEPALIVE_S = 4.0
"""Shorter than vLLM's five seconds, so that we drop an idle connection before the server does."""
ERROR_BYTES_MAX = 64 * 1024
CONTEXT_TOKENS = 4096
"""Where a server does not say how long a context may be; vLLM does."""

PLAIN_CHAT: tuple[Json, ...] = ({"role": "user", "content": "x"},)
SYSTEM_CHAT: tuple[Json, ...] = ({"role": "system", "content": "x"}, *PLAIN_CHAT)
"""The shortest chats, to see what a chat template adds."""

OURS = frozenset(
    {"messages", "model", "n", "max_tokens", "max_completion_tokens", "stream", "stream_options", "allotd"}
)
"""What a client's parameters may not set: the budget does."""


class _ModelCard(msgspec.Struct):
    id: str
    root: str | None = None
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class _Tokenized(msgspec.Struct):
    count: int


class _Refusal(msgspec.Struct):
    message: str


class _RefusalBody(msgspec.Struct):
    error: _Refusal


class VllmEngine:
    """Streams waves from one vLLM server, or from whatever speaks its protocol."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        silence_s: float = SILENCE_S,
        tries: int = TRIES,
        backoff_s: float = BACKOFF_S,
        tokenizer_path: Path | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._tries = tries
        self._backoff_s = backoff_s
        self._tokenizer_path = tokenizer_path
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, request: GenerationRequest, abort: Abort, progress: Progress | None = None) -> Generation:
        """Generate one wave; see `scheduler.engine.Engine`. Tried again only while nothing was generated."""
        body = encode(request)

        async def pause(seconds: float) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(abort.wait(), seconds)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(EngineUnavailable),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=tenacity.wait_exponential(multiplier=self._backoff_s, max=10.0)
            + tenacity.wait_random(0, self._backoff_s),
            sleep=pause,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                if abort.is_set():
                    return Generation(samples=(), usage=Usage(), interrupted=True)
                return await self._attempt(request, body, abort, progress)
        raise AssertionError("tenacity returns or raises")

    async def llms(self) -> tuple[Llm, ...]:
        """The models the server serves. Raises EngineUnavailable, or EngineRejected for a wrong key."""
        try:
            async with self._open().get(f"{self._url}/models", timeout=_timeout(CONNECT_TIMEOUT_S)) as response:
                if response.status != 200:
                    raise await refusal(response)
                cards = msgspec.json.decode(await response.read(), type=_ModelList).data
        except EngineRejected:
            raise
        except (aiohttp.ClientError, OSError, ValueError, EngineError) as error:
            raise EngineUnavailable(f"The model server at {self._url} does not list its models: {error!r}") from error
        return tuple([await self._measured(described(card, self._tokenizer_path)) for card in cards])

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _measured(self, llm: Llm) -> Llm:
        """The model, with what its chat template adds to a chat."""
        return replace(
            llm,
            template_tokens=await self._added_to(llm, PLAIN_CHAT),
            template_system_tokens=await self._added_to(llm, SYSTEM_CHAT),
        )

    async def _added_to(self, llm: Llm, chat: tuple[Json, ...]) -> int | None:
        """How many more tokens the server counts in a chat than we do; None where it does not count for us."""
        url = f"{self._url.removesuffix('/v1')}/tokenize"
        body = msgspec.json.encode({"model": llm.name, "messages": chat})
        headers = {"Content-Type": "application/json"}
        try:
            async with self._open().post(url, data=body, headers=headers, timeout=_timeout(CONNECT_TIMEOUT_S)) as reply:
                if reply.status != 200:
                    return None
                counted = msgspec.json.decode(await reply.read(), type=_Tokenized).count
        except (aiohttp.ClientError, OSError, ValueError):
            return None
        return counted - counter_for(llm.tokenizer_path).count_messages(chat)

    def _open(self) -> aiohttp.ClientSession:
        """The session, made on first use, because it belongs to the running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Authorization": f"Bearer {self._api_key}"} if self._api_key else None,
                timeout=_timeout(None),
            )
        return self._session

    async def _attempt(
        self, request: GenerationRequest, body: bytes, abort: Abort, progress: Progress | None
    ) -> Generation:
        """Ask once. Closing the connection is how vLLM is told to stop."""
        stream = ChatStream(request)
        clock = _Clock()
        reader = asyncio.create_task(self._read(request.request_id, body, stream, clock, progress))
        aborted = asyncio.create_task(_flagged(abort))
        try:
            is_late = not await self._first_of(reader, aborted, clock)
        finally:
            reader.cancel()
            aborted.cancel()
            await asyncio.gather(reader, aborted, return_exceptions=True)
        failure = None if reader.cancelled() else reader.exception()
        if failure is None and is_late:
            failure = EngineError(
                f"The model server took too long (limit {self._timeout_s:g} s, "
                f"and {self._silence_s:g} s of silence after its first token)."
            )
        if failure is not None and not stream.has_tokens:
            raise failure
        if failure is not None:
            log.warning("generation_broken", request=request.request_id, error=str(failure))
        elif not stream.has_usage and stream.has_tokens:
            log.warning("usage_missing", request=request.request_id)
        return stream.generation()

    async def _first_of(self, reader: asyncio.Task[None], aborted: asyncio.Task[None], clock: _Clock) -> bool:
        """Wait for the end of the answer or for the abort; False when neither came in time."""
        total_at = clock.now() + self._timeout_s
        while True:
            silent_at = (clock.heard_at or clock.now()) + self._silence_s
            left_s = min(total_at, silent_at) - clock.now()
            if left_s <= 0:
                return False
            done, _ = await asyncio.wait({reader, aborted}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return True

    async def _read(
        self, request_id: str, body: bytes, stream: ChatStream, clock: _Clock, progress: Progress | None
    ) -> None:
        """Post the request and feed the stream until its end. Raises EngineError and its kinds only."""
        headers = {"Content-Type": "application/json", "X-Request-Id": header_safe(request_id)}
        url = f"{self._url}/chat/completions"
        try:
            async with self._open().post(url, data=body, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise await refusal(response)
                async for data in response.content.iter_any():
                    stream.feed(data)
                    if stream.has_tokens:
                        clock.heard_at = clock.now()
                        if progress is not None:
                            progress(stream.usage())
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            raise EngineUnavailable(f"The model server at {self._url} cannot be reached: {error!r}") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineError(f"The model server sent what is no HTTP answer: {error!r}") from error
        if not stream.is_complete:
            raise EngineError("The model server ended its answer before its end.")


class _Clock:
    """When the last tokens were heard, on the event loop's clock; zero before the first."""

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.now = asyncio.get_running_loop().time


async def _flagged(abort: Abort) -> None:
    await abort.wait()


def encode(request: GenerationRequest) -> bytes:
    """The request's JSON. Raises EngineRejected for what JSON cannot say."""
    body: dict[str, Any] = {key: value for key, value in request.params.items() if key not in OURS}
    body |= {
        "model": request.model,
        "messages": [dict(message) for message in request.messages],
        "n": request.n,
        "max_tokens": clamped_tokens(request),
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.seed is not None:
        body["seed"] = request.seed
    if request.logprobs:
        body["logprobs"] = True
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EngineRejected(f"The request cannot be written as JSON: {error}") from error


def clamped_tokens(request: GenerationRequest) -> int:
    """The completion limit to ask for: the budget's, or the client's own where it is lower."""
    wanted = [request.params.get(key) for key in ("max_tokens", "max_completion_tokens")]
    return min([request.tokens_max, *(value for value in wanted if isinstance(value, int) and value > 0)])


async def refusal(response: aiohttp.ClientResponse) -> EngineError:
    """The error that an answer other than 200 stands for, in the server's words."""
    raw = await response.content.read(ERROR_BYTES_MAX)
    try:
        message = msgspec.json.decode(raw, type=_RefusalBody).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = raw.decode(errors="replace")[:500]
    return fault(response.status, message)


def described(card: _ModelCard, tokenizer_path: Path | None = None) -> Llm:
    """A served model, with its tokenizer where one is named or the server reads it from this machine's disk."""
    root = str(tokenizer_path) if tokenizer_path is not None else card.root
    is_local = root is not None and Path(root).exists()
    return Llm(
        name=card.id,
        context_tokens=card.max_model_len or CONTEXT_TOKENS,
        tokenizer_path=root if is_local else None,
    )


def header_safe(text: str) -> str:
    """The text without what a header may not hold."""
    return "".join(character if 32 < ord(character) < 127 else "_" for character in text)


def _timeout(total_s: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S)
