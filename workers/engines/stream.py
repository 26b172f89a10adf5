"""What a streamed chat completion adds up to: chunks of n choices, put together into samples and a usage to bill."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Any

import msgspec

from scheduler.engine import Generation, GenerationRequest
from scheduler.errors import EngineError, EngineRejected, EngineUnavailable
from scheduler.types import Json, Sample, Usage

ABORTED = "aborted"
LINE_BYTES_MAX = 32 * 1024 * 1024
"""A line of a stream longer than this is no chunk: 4096 tokens with 20 alternatives each stay below it."""
BYTES_PER_TOKEN = 3
"""Where a server says neither usage nor logprobs, tokens are guessed from bytes: English has 4 to 5 bytes a token in
today's vocabularies, so the guess is on the side of the tenant's cap."""

DEAD = "EngineCore encountered an issue"
"""What vLLM's HTTP process says, with status 500, when the process behind it has died: a restart mends that."""

PROMPT_EXTRA_TOKENS = 32_768
"""What a chat template, tools and pictures may add to a prompt whose words are fewer bytes: more is no honest count."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: Count | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count = 0
    completion_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _TokenLogprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    index: Count = 0
    delta: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Fault(msgspec.Struct):
    message: str = ""
    code: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Fault | None = None


class _ChunkWithoutUsage(msgspec.Struct):
    choices: list[_Choice] = []
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: _Fault | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_without_usage = msgspec.json.Decoder(_ChunkWithoutUsage).decode


@dataclass(slots=True)
class _Partial:
    """One choice as far as it has arrived."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None
    reported_tokens: int | None = None
    reported_reasoning: int | None = None
    chunks: int = 0
    bytes_seen: int = 0
    reasoning_bytes: int = 0
    logprob_count: int = 0
    logprob_sum: float = 0.0

    @property
    def tokens(self) -> int:
        """The choice's tokens: as reported, else as counted."""
        return self.counted_tokens if self.reported_tokens is None else self.reported_tokens

    @property
    def counted_tokens(self) -> int:
        """One per logprob, else guessed from chunks and bytes, rather too many than too few."""
        return self.logprob_count or max(self.chunks, ceil(self.bytes_seen / BYTES_PER_TOKEN))

    def credible_tokens(self, allowed: int) -> int:
        """The choice's tokens to be paid for: a report of more than was allowed counts only as far as it arrived."""
        if self.reported_tokens is None:
            return min(self.counted_tokens, max(allowed, self.logprob_count))
        return self.reported_tokens if self.reported_tokens <= allowed else min(self.tokens, self.counted_tokens)

    def add(self, choice: _Choice) -> None:
        if choice.delta is not None:
            self._add_delta(choice.delta)
        if choice.logprobs is not None and choice.logprobs.content:
            self.logprob_count += len(choice.logprobs.content)
            self.logprob_sum += sum(token.logprob for token in choice.logprobs.content)
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason

    def _add_delta(self, delta: _Delta) -> None:
        reasoning = delta.reasoning or delta.reasoning_content
        self.chunks += bool(delta.content or reasoning or delta.tool_calls)
        if delta.content:
            self.text.append(delta.content)
            self.bytes_seen += len(delta.content.encode())
        if reasoning:
            self.reasoning.append(reasoning)
            self.reasoning_bytes += len(reasoning.encode())
            self.bytes_seen += len(reasoning.encode())
        for part in delta.tool_calls or ():
            call = self.tool_calls.setdefault(
                part.index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = part.id or call["id"]
            if part.function is not None:
                call["function"]["name"] += part.function.name or ""
                call["function"]["arguments"] += part.function.arguments or ""
                self.bytes_seen += len((part.function.arguments or "").encode())

    def message(self) -> Json:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text)}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tool_calls:
            message["tool_calls"] = [call for _, call in sorted(self.tool_calls.items())]
        return message


class ChatStream:
    """Takes the bytes of a server-sent event stream and says at every moment what they amount to."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._choices = [_Partial() for _ in range(request.n)]
        self._tail = b""
        self._prompt: int | None = None
        self._cached = 0
        self._total: _Usage | None = None
        self._is_ended = False
        self.has_usage = False
        self.complaint: str | None = None
        """What no honest server does, where this one has done it."""

    @property
    def is_complete(self) -> bool:
        """Whether every choice came to its end."""
        return all(choice.finish_reason is not None for choice in self._choices)

    @property
    def is_ended(self) -> bool:
        """Whether the server said that nothing more will come."""
        return self._is_ended

    @property
    def has_tokens(self) -> bool:
        """Whether anything was generated, so that trying again would cost twice."""
        return any(choice.tokens for choice in self._choices)

    def feed(self, data: bytes) -> None:
        """Take in what the network brought, in pieces of any size.

        Raises EngineError on what is no chunk, and on more than was asked for, which nobody is to wait for the end of.
        """
        *lines, self._tail = (self._tail + data).split(b"\n")
        if len(self._tail) > LINE_BYTES_MAX:
            raise EngineError("The model server sent a line without end.")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def usage(self) -> Usage:
        """The usage of the whole request so far."""
        counts, reasoning = self._counts()
        return self._usage(counts, reasoning)

    def generation(self) -> Generation:
        """What was generated: whole, or as far as it came, with `interrupted` set."""
        counts, reasoning = self._counts()
        samples = tuple(
            _sample(choice, tokens, thought)
            for choice, tokens, thought in zip(self._choices, counts, reasoning, strict=True)
            if tokens or choice.finish_reason is not None
        )
        return Generation(
            samples=samples,
            usage=self._usage(counts, reasoning),
            interrupted=not self.is_complete,
            complaint=self.complaint,
        )

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._is_ended = True
            return
        chunk = self._decoded(data)
        if chunk.error is not None:
            raise fault(chunk.error.code, chunk.error.message)
        for choice in chunk.choices:
            if choice.index >= len(self._choices):
                self._complain(f"It sent choice {choice.index}, counted from 0, of {len(self._choices)} asked for.")
                raise EngineError(f"The model server sent choice {choice.index} of {len(self._choices)}.")
            self._choices[choice.index].add(choice)
        if chunk.usage is not None:
            self._count(chunk.usage, chunk.choices)
        self._check(chunk)

    def _decoded(self, data: bytes) -> _Chunk:
        """The chunk; one whose usage alone is garbage is read without it, and complained of."""
        try:
            return _decode_chunk(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problem = error
        try:
            chunk = _decode_without_usage(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise EngineError(f"The model server sent what is no chunk of a chat completion: {problem}") from None
        self._complain(f"It reported a usage that is none: {problem}.")
        return _Chunk(choices=chunk.choices, error=chunk.error)

    def _check(self, chunk: _Chunk) -> None:
        """Complain of a count that is more than was allowed, or than can be. Raises EngineError where it is."""
        allowed, problem = self._request.tokens_max, None
        for choice in (self._choices[choice.index] for choice in chunk.choices):
            most = max(choice.reported_tokens or 0, choice.logprob_count)
            if most > allowed:
                problem = f"It made or reported {most} tokens for a sample of at most {allowed}."
        total = self._total.completion_tokens if self._total is not None else None
        if total is not None and total > allowed * len(self._choices):
            problem = f"It reported {total} completion tokens where {allowed * len(self._choices)} were allowed."
        if self._is_prompt_absurd():
            problem = f"It reported {self._prompt} prompt tokens, which is more than the prompt's bytes."
        if problem is not None:
            self._complain(problem)
            raise EngineError(f"The model server does not keep to what it was asked for. {problem}")

    def _is_prompt_absurd(self) -> bool:
        if self._prompt is None or self._prompt <= PROMPT_EXTRA_TOKENS:
            return False  # as nearly always; writing the prompt down to measure it takes longer than the question
        return self._prompt > prompt_most(self._request.messages, self._request.params)

    def _complain(self, because: str) -> None:
        self.complaint = self.complaint or because

    def _count(self, usage: _Usage, choices: list[_Choice]) -> None:
        """Read a usage: beside a choice it is that choice's so far, alone it is the request's total.

        That is how vLLM fills `continuous_usage_stats`: the cheapest exact count per choice it offers, because it
        costs a few bytes per chunk, while token ids and logprobs cost some per token.
        """
        self.has_usage = True
        self._prompt = usage.prompt_tokens
        if usage.prompt_tokens_details is not None:
            self._cached = usage.prompt_tokens_details.cached_tokens or 0
        if not choices:
            self._total = usage
            return
        if usage.completion_tokens is not None and len(choices) == 1:
            partial = self._choices[choices[0].index]
            partial.reported_tokens = usage.completion_tokens
            if usage.completion_tokens_details is not None:
                partial.reported_reasoning = usage.completion_tokens_details.reasoning_tokens

    def _counts(self) -> tuple[list[int], list[int]]:
        """Tokens and reasoning tokens of each choice, adding up to the reported total where there is one.

        What a server reports beyond what it was allowed is paid for as far as it was seen to arrive: that much it did
        make, whoever's fault that is, and a wrong meter alone takes nothing from the tenant.
        """
        allowed = self._request.tokens_max
        counts = [choice.credible_tokens(allowed) for choice in self._choices]
        total = self._total.completion_tokens if self._total is not None else None
        if total is not None and total != sum(counts):
            seen = [choice.counted_tokens for choice in self._choices]
            if total > allowed * len(counts):
                total = min(total, sum(seen))
            counts = [min(n, max(allowed, m)) for n, m in zip(apportion(total, seen), seen, strict=True)]
        return counts, [min(*pair) for pair in zip(self._reasoning_counts(), counts, strict=True)]

    def _reasoning_counts(self) -> list[int]:
        details = self._total.completion_tokens_details if self._total is not None else None
        reported = [choice.reported_reasoning or 0 for choice in self._choices]
        if details is None or details.reasoning_tokens is None or details.reasoning_tokens == sum(reported):
            return reported
        return apportion(details.reasoning_tokens, [choice.reasoning_bytes for choice in self._choices])

    def _usage(self, counts: list[int], reasoning: list[int]) -> Usage:
        prompt = self._prompt
        if prompt is None or self._is_prompt_absurd():
            prompt = prompt_guess(self._request.messages) if any(counts) else 0
        return Usage(prompt=prompt, cached=min(self._cached, prompt), completion=sum(counts), reasoning=sum(reasoning))


def fault(code: object, message: str) -> EngineError:
    """The error that a server's status and words mean for the one who asked."""
    try:
        status = int(str(code))
    except ValueError:
        status = 500
    if status in (429, 502, 503) or message.startswith(DEAD):
        return EngineUnavailable(f"The model server is not available ({status}): {message}", status=status)
    if 400 <= status < 500:
        return EngineRejected(message or f"The model server refused the request ({status}).", status=status)
    return EngineError(f"The model server failed ({status}): {message}", status=status)


def apportion(total: int, weights: list[int]) -> list[int]:
    """Split a whole number in proportion to the weights, so that the parts add up to it."""
    if not any(weights):
        weights = [1] * len(weights)
    parts: list[int] = []
    seen = given = 0
    for weight in weights:
        seen += weight
        parts.append(total * seen // sum(weights) - given)
        given += parts[-1]
    return parts


def prompt_guess(messages: tuple[Json, ...]) -> int:
    """Tokens of a prompt whose count nobody told; the JSON around the words stands for the chat template."""
    return ceil(len(msgspec.json.encode([dict(message) for message in messages])) / BYTES_PER_TOKEN)


def prompt_most(messages: tuple[Json, ...], params: Json) -> int:
    """More tokens than any server can honestly count in a prompt: no token is shorter than a byte."""
    return len(msgspec.json.encode([*map(dict, messages), dict(params)])) + PROMPT_EXTRA_TOKENS


def _sample(choice: _Partial, tokens: int, reasoning_tokens: int) -> Sample:
    return Sample(
        text="".join(choice.text),
        tokens=tokens,
        reasoning_tokens=reasoning_tokens,
        finish_reason=choice.finish_reason or ABORTED,
        logprob_mean=choice.logprob_sum / choice.logprob_count if choice.logprob_count else None,
        message=choice.message(),
    )
