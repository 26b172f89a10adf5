"""The shipped fake engine: seeded completions of queries of all difficulties, so that logic, load and crashes can be
tested without a model. A fake token is a word; a fake seed behaves as vLLM's does (sample `i` of seed `s` is `s + i`).
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Self

import msgspec

from scheduler.engine import Abort, Generation, GenerationRequest, Progress
from scheduler.errors import EngineError, EngineRejected, EngineUnavailable, InvalidRequest
from scheduler.types import Json, Llm, Sample, Usage

FILLER = ("so", "we", "take", "it", "step", "by", "step", "and", "look", "at", "what", "is", "asked", "then", "work")
SUM = re.compile(r"-?\d+(?:\s*[-+*x\u00d7]\s*\d+)+")
TERM = re.compile(r"([-+*x\u00d7])?\s*(\d+)")
CHAT_TEMPLATE_TOKENS = 4
"""Per message, as in most chat templates: who speaks, and where it starts and ends."""


class Fault(StrEnum):
    """What can go wrong with a request."""

    UNAVAILABLE = "unavailable"
    BREAK = "break"
    HANG = "hang"
    GARBAGE = "garbage"
    OVERRUN = "overrun"
    RATE_LIMIT = "rate_limit"
    FAIL = "fail"
    MISREPORT = "misreport"


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeOptions:
    """How the fake behaves.

    Each query has a chance that one sample is right, drawn from Beta(success_alpha, success_beta); wrong samples
    scatter over `wrong_answers` answers with Zipf weights of exponent `wrong_skew`. Completion lengths are lognormal: a
    median per query, scattered around `tokens_median`, and samples scattered around it. Waiting is multiplied by
    `time_scale`; 0 does not wait. The `*_rate`s are shares of requests to which that fault happens. `ease` adds to the
    log-odds of the models it names; queries are then equally hard for all models.
    """

    seed: int = 0
    models: tuple[str, ...] = ("fake",)
    context_tokens: int = 8192
    success_alpha: float = 1.0
    success_beta: float = 1.0
    wrong_answers: int = 5
    wrong_skew: float = 1.0
    tokens_median: float = 60.0
    query_sigma: float = 0.4
    sample_sigma: float = 0.3
    first_token_s: float = 0.2
    tokens_per_s: float = 50.0
    time_scale: float = 0.0
    chunk_tokens: int = 16
    unavailable_rate: float = 0.0
    break_rate: float = 0.0
    break_after_tokens: int = 8
    hang_rate: float = 0.0
    hang_s: float = 3600.0
    garbage_rate: float = 0.0
    overrun_rate: float = 0.0
    rate_limit_rate: float = 0.0
    fail_rate: float = 0.0
    misreport_rate: float = 0.0
    ease: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | None) -> Self:
        """Read options from a JSON object; what it does not name stays as it is. Raises InvalidRequest."""
        try:
            given = msgspec.json.decode(text, type=dict[str, Any]) if text else {}
            if unknown := given.keys() - {each.name for each in fields(cls)}:
                raise InvalidRequest(f"The fake engine has no option {', '.join(sorted(unknown))}.")
            return msgspec.convert(given, cls)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"The fake engine's options are wrong: {error}") from None

    @property
    def fault_rates(self) -> tuple[float, ...]:
        """The rates in the order of `Fault`."""
        return tuple(getattr(self, f"{fault}_rate") for fault in Fault)


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeSample:
    """One completion before it is told: its words, how sure it was of each, and why it ended."""

    words: tuple[str, ...]
    logprobs: tuple[float, ...]
    finish_reason: str

    def said(self, tokens: int, *, is_whole: bool) -> Sample:
        """The sample as far as its first `tokens` words."""
        words, logprobs = self.words[:tokens], self.logprobs[:tokens]
        return Sample(
            text=" ".join(words),
            tokens=len(words),
            finish_reason=self.finish_reason if is_whole else "aborted",
            logprob_mean=sum(logprobs) / len(logprobs) if logprobs else None,
            message={"role": "assistant", "content": " ".join(words)},
        )


class FakeEngine:
    """Answers waves from nothing but its seed."""

    def __init__(self, options: FakeOptions | None = None) -> None:
        self.options = options or FakeOptions()
        self._tries: Counter[str] = Counter()

    async def generate(self, request: GenerationRequest, abort: Abort, progress: Progress | None = None) -> Generation:
        """Generate one wave; see `scheduler.engine.Engine`."""
        fault = self.next_fault(request.request_id)
        if fault in {Fault.UNAVAILABLE, Fault.RATE_LIMIT}:
            raise EngineUnavailable(request_id=request.request_id)
        if fault is Fault.FAIL:
            raise EngineError("The model server failed.", request_id=request.request_id)
        if fault is Fault.GARBAGE:
            raise EngineError("The model server sent what is no HTTP answer.", request_id=request.request_id)
        if fault is Fault.HANG:
            await sleep_or_abort(self.options.hang_s, abort)
            if not abort.is_set():
                raise EngineError("The model server said nothing for too long.", request_id=request.request_id)
        samples = compose(self.options, request)
        prompt = prompt_tokens(request.messages)
        told = 0
        async for told in self.steps(samples, abort, fault):
            if progress is not None:
                progress(Usage(prompt=prompt, completion=sum(min(told, len(s.words)) for s in samples)))
        return finished(request, samples, told, fault)

    async def llms(self) -> tuple[Llm, ...]:
        """The models the options name."""
        return tuple(Llm(name=name, context_tokens=self.options.context_tokens) for name in self.options.models)

    async def close(self) -> None:
        """Nothing is held."""

    def next_fault(self, request_id: str) -> Fault | None:
        """What goes wrong this time: drawn anew for every try of a request, so that trying again can help."""
        if not any(self.options.fault_rates):
            return None
        self._tries[request_id] += 1
        draw = seeded(self.options.seed, "fault", request_id, self._tries[request_id]).random()
        for fault, below in zip(Fault, accumulate(self.options.fault_rates), strict=True):
            if draw < below:
                return fault
        return None

    async def steps(
        self, samples: tuple[FakeSample, ...], abort: Abort, fault: Fault | None = None
    ) -> AsyncIterator[int]:
        """How many words of each sample have been said, at the pace of a server that runs them side by side."""
        options = self.options
        longest = max(len(sample.words) for sample in samples)
        if fault is Fault.BREAK:
            longest = min(longest - 1, options.break_after_tokens)
        said = 0
        await sleep_or_abort(options.first_token_s * options.time_scale, abort)
        while said < longest and not abort.is_set():
            step = 1 if said == 0 else min(options.chunk_tokens, longest - said)
            await sleep_or_abort(step / options.tokens_per_s * options.time_scale, abort)
            if abort.is_set():
                return
            said += step
            yield said


def compose(options: FakeOptions, request: GenerationRequest) -> tuple[FakeSample, ...]:
    """What the fake says to a request: the same for the same seeds. Raises EngineRejected as vLLM would."""
    if request.model not in options.models:
        raise EngineRejected(f"The model `{request.model}` does not exist.", status=404)
    if prompt_tokens(request.messages) + request.tokens_max > options.context_tokens:
        raise EngineRejected("The prompt and max_tokens are longer than the model's context.", status=400)
    if request.n < 1 or request.tokens_max < 1:
        raise EngineRejected("n and max_tokens must be at least 1.", status=400)
    prompt = prompt_text(request.messages)
    return tuple(_sample(options, request, prompt, index) for index in range(request.n))


def finished(
    request: GenerationRequest, samples: tuple[FakeSample, ...], told: int, fault: Fault | None = None
) -> Generation:
    """The generation after the first `told` words of every sample; a break before them raises EngineUnavailable."""
    is_whole = told >= max(len(sample.words) for sample in samples)
    if told == 0 and fault is Fault.BREAK:
        raise EngineUnavailable("The model server closed the connection.", request_id=request.request_id)
    said = tuple(s.said(told, is_whole=told >= len(s.words)) for s in samples) if told else ()
    completion = sum(sample.tokens for sample in said)
    if fault is Fault.OVERRUN:
        completion = overrun(request)
    return Generation(
        samples=said,
        usage=Usage(prompt=prompt_tokens(request.messages) if told else 0, completion=completion),
        interrupted=not is_whole,
        complaint="It reported a usage that is none." if fault is Fault.MISREPORT else None,
    )


def overrun(request: GenerationRequest) -> int:
    """The completion tokens that a server with a wrong meter reports: more than was allowed."""
    return 2 * request.n * request.tokens_max + 1


def success_rate(options: FakeOptions, model: str, messages: tuple[Json, ...]) -> float:
    """The chance that one sample of this query is right."""
    query = seeded(options.seed, "query", *(() if options.ease else (model,)), prompt_text(messages))
    rate = query.betavariate(options.success_alpha, options.success_beta)
    odds = rate * math.exp(options.ease.get(model, 0.0))
    return odds / (odds + 1 - rate)


def right_answer(prompt: str) -> str:
    """The right answer to a prompt: its last sum where it has one, else a number from its hash."""
    sums = SUM.findall(prompt)
    if sums:
        return str(value_of(sums[-1]))
    return str(seeded("answer", prompt).randrange(1000))


def value_of(expression: str) -> int:
    """The value of whole numbers joined by + - *, products first."""
    total, product = 0, 1
    sign = 1
    if expression.startswith("-"):
        sign, expression = -1, expression[1:]
    for operator, digits in TERM.findall(expression):
        if operator in ("+", "-"):
            total += sign * product
            sign, product = (1 if operator == "+" else -1), 1
        product *= int(digits)
    return total + sign * product


def prompt_text(messages: tuple[Json, ...]) -> str:
    """The words of the messages, whether they are plain or in parts."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts.extend(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return "\n".join(texts)


def prompt_tokens(messages: tuple[Json, ...]) -> int:
    """The fake's count of a prompt: its words, and a few tokens per message."""
    return len(prompt_text(messages).split()) + CHAT_TEMPLATE_TOKENS * len(messages)


async def sleep_or_abort(seconds: float, abort: Abort) -> None:
    """Wait, but not longer than until the abort."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        await asyncio.wait_for(abort.wait(), seconds)
    except TimeoutError:
        return


def seeded(*key: object) -> random.Random:
    """A generator that depends on the key alone, on every machine and in every process."""
    digest = blake2b("\x1f".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return random.Random(int.from_bytes(digest))  # noqa: S311 - nothing secret is drawn


def _sample(options: FakeOptions, request: GenerationRequest, prompt: str, index: int) -> FakeSample:
    query = seeded(options.seed, "length", request.model, prompt)
    draw = seeded(options.seed, request.model, prompt, *_draw_key(request, index))
    is_right = draw.random() < success_rate(options, request.model, request.messages)
    answer = right_answer(prompt) if is_right else _wrong_answer(options, prompt, draw)
    ending = ["The", "answer", "is", f"{answer}."]
    median = options.tokens_median * query.lognormvariate(0.0, options.query_sigma)
    length = max(len(ending), round(median * draw.lognormvariate(0.0, options.sample_sigma)))
    start = draw.randrange(len(FILLER))
    filler = [FILLER[(start + i) % len(FILLER)] for i in range(length - len(ending))]
    words = tuple([*filler, *ending][: request.tokens_max])
    sureness = 4.0 if is_right else 2.0  # a right sample is surer of its words, as real ones are on average
    return FakeSample(
        words=words,
        logprobs=tuple(-draw.expovariate(sureness) for _ in words),
        finish_reason="length" if length > request.tokens_max else "stop",
    )


def _draw_key(request: GenerationRequest, index: int) -> tuple[object, ...]:
    if request.temperature == 0:
        return ("greedy",)
    if request.seed is not None:
        return ("seed", request.seed + index)
    return ("request", request.request_id, index)


def _wrong_answer(options: FakeOptions, prompt: str, draw: random.Random) -> str:
    right = int(right_answer(prompt))
    offsets = seeded(options.seed, "wrong", prompt).sample(
        range(1, 10 * options.wrong_answers + 1), options.wrong_answers
    )
    weights = [1 / rank**options.wrong_skew for rank in range(1, options.wrong_answers + 1)]
    [offset] = draw.choices(offsets, weights)
    return str(right + offset)
