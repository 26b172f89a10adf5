"""How a workload is recorded: many samples of every query on a served model, each judged, one JSON line per query."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from scheduler import verification
from scheduler.errors import Conflict, EngineError, EngineRejected, EngineUnavailable, InvalidRequest
from scheduler.requests import Defaults, KnownLlm, Limits, ParsedQuery, Rejection, parse_line
from scheduler.types import Verdict, VerifierSpec

SAMPLES_PER_REQUEST = 32
"""A request of more samples would keep others of its size out of a small server's memory."""
TRIES = 5
BACKOFF_S = 1.0
NAMED_MAX = 5
SHOWN_MAX = 64
"""Characters of a setting that an error message repeats."""


SETTINGS = ("model", "temperature", "max_tokens", "top_p")
"""What of a request makes its samples comparable with others of the same query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What is recorded, and under which names."""

    pool: str
    arm: str
    samples: int
    tokens_max: int
    temperature: float
    seed: int | None = None
    price: Mapping[str, float] | None = None

    def request_of(self, query: ParsedQuery) -> dict[str, Any]:
        """What the server is asked for a query, but for how many samples."""
        body = json.loads(query.body_json)
        limit = body.get("max_tokens") or query.tokens_max or self.tokens_max
        return {"temperature": self.temperature, **body, "max_tokens": limit}

    def settings_of(self, query: ParsedQuery) -> dict[str, Any]:
        """What a pool line says of how its samples were drawn."""
        request = self.request_of(query)
        return {name: request[name] for name in SETTINGS if name in request}


def refuse_another_recording(
    lines: Iterable[Mapping[str, Any]], queries: Iterable[ParsedQuery], recording: Recording
) -> None:
    """Refuse to go on with a pool whose samples of the same queries and arm were drawn in another way.

    Raises Conflict that names the first such line. Lines that do not say how they were drawn are taken at their word.
    """
    wanted = {query.custom_id: query for query in queries}
    for line in lines:
        query = wanted.get(line["id"])
        if query is None or line["arm"] != recording.arm:
            continue
        told = {"question": line.get("question"), "reference": line.get("reference"), **(line.get("settings") or {})}
        asked = {
            "question": _question(json.loads(query.body_json)["messages"]),
            "reference": query.reference,
            **recording.settings_of(query),
        }
        for name, now in asked.items():
            if (before := told.get(name)) is not None and before != now:
                raise Conflict(
                    f"The pool holds {line['id']!r} under the arm {recording.arm!r} with the {name} {_short(before)}, "
                    f"and {_short(now)} is asked for now; repeat the earlier settings, or choose another --arm or "
                    "--out."
                )


def read_workload(lines: Iterable[bytes], llms: Mapping[str, int], model: str | None) -> list[ParsedQuery]:
    """The queries of a batch file, checked as a batch's lines are; `model` replaces what they name.

    Raises InvalidRequest that names the lines that cannot be recorded.
    """
    known = {name: KnownLlm(context_tokens=size, tokenizer_path=None, is_priced=True) for name, size in llms.items()}
    found: list[ParsedQuery] = []
    wrong: list[str] = []
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        query = parse_line(_for_model(raw, model), number, Defaults(), Limits(llms=known))
        if isinstance(query, Rejection):
            wrong.append(query.message)
        elif query.verifier is None or query.reference is None:
            wrong.append(f"Line {number} has no allotd.verifier with a reference; a pool must know what is right.")
        else:
            found.append(query)
    wrong.extend(_doubles(found))
    if wrong:
        more = f" (and {len(wrong) - NAMED_MAX} more)" if len(wrong) > NAMED_MAX else ""
        raise InvalidRequest(f"The workload cannot be recorded: {' '.join(wrong[:NAMED_MAX])}{more}")
    if not found:
        raise InvalidRequest("The workload holds no line.")
    return found


async def record(
    client: httpx.AsyncClient, queries: Iterable[ParsedQuery], recording: Recording, concurrency: int
) -> AsyncIterator[dict[str, Any] | EngineRejected]:
    """One pool line per query as it is done, or why the server refused it. Raises EngineError when the server fails."""
    waiting = iter(queries)
    running: set[asyncio.Task[dict[str, Any] | EngineRejected]] = set()
    try:
        while True:
            while len(running) < concurrency and (query := next(waiting, None)) is not None:
                running.add(asyncio.create_task(_record_query(client, query, recording)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _record_query(
    client: httpx.AsyncClient, query: ParsedQuery, recording: Recording
) -> dict[str, Any] | EngineRejected:
    body = recording.request_of(query)
    choices: list[dict[str, Any]] = []
    prompt_tokens = 0
    try:
        while len(choices) < recording.samples:
            wanted = min(SAMPLES_PER_REQUEST, recording.samples - len(choices))
            answer = await _ask(client, _request(body, recording, wanted, drawn=len(choices)))
            got, prompt_tokens = _choices(answer, wanted)
            choices.extend(got)
    except EngineRejected as error:
        return EngineRejected(f"{query.custom_id}: {error.message}")
    return await asyncio.to_thread(_pool_line, query, body, recording, choices, prompt_tokens)


def _request(body: Mapping[str, Any], recording: Recording, wanted: int, *, drawn: int) -> dict[str, Any]:
    request = {**body, "n": wanted, "logprobs": True}
    if recording.seed is not None:
        request["seed"] = recording.seed + drawn
    return request


async def _ask(client: httpx.AsyncClient, request: Mapping[str, Any]) -> dict[str, Any]:
    """Ask, again where the server was away or overloaded."""
    for tries_left in reversed(range(TRIES)):
        try:
            response = await client.post("chat/completions", json=request)
        except httpx.TransportError as error:
            problem = f"The model server at {client.base_url} cannot be reached ({error or type(error).__name__})."
        else:
            if response.is_success:
                answer: dict[str, Any] = response.json()
                return answer
            problem = f"The model server answered {response.status_code}: {_message(response)}"
            if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                raise EngineRejected(problem)
        if tries_left:
            await asyncio.sleep(BACKOFF_S * 2 ** (TRIES - 1 - tries_left))
    raise EngineUnavailable(problem)


def _choices(answer: Mapping[str, Any], wanted: int) -> tuple[list[dict[str, Any]], int]:
    """Text, tokens, mean log-probability and finish reason of each choice, and the prompt's tokens."""
    try:
        usage, choices = answer["usage"], answer["choices"]
        read = [_choice(choice, usage["completion_tokens"], len(choices)) for choice in choices]
        prompt_tokens = int(usage["prompt_tokens"])
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise EngineError(f"The model server's answer is no chat completion with usage ({error!r}).") from None
    if len(read) != wanted:
        raise EngineError(f"The model server sent {len(read)} samples where {wanted} were asked for.")
    return read, prompt_tokens


def _choice(choice: Mapping[str, Any], completion_tokens: int, count: int) -> dict[str, Any]:
    logprobs = [token["logprob"] for token in ((choice.get("logprobs") or {}).get("content") or [])]
    return {
        # Servers count tokens per request; only the list of log-probabilities says how many each sample had.
        "tokens": len(logprobs) or round(completion_tokens / count),
        "logprob": sum(logprobs) / len(logprobs) if logprobs else None,
        "finish": choice.get("finish_reason"),
        "text": choice["message"].get("content") or "",
    }


def _pool_line(
    query: ParsedQuery,
    body: Mapping[str, Any],
    recording: Recording,
    choices: Iterable[Mapping[str, Any]],
    prompt_tokens: int,
) -> dict[str, Any]:
    assert query.verifier is not None
    spec = VerifierSpec(kind=Verdict(query.verifier), reference=query.reference)
    line = {
        "pool": recording.pool,
        "id": query.custom_id,
        "task": query.task,
        "arm": recording.arm,
        "question": _question(body["messages"]),
        "reference": query.reference,
        "settings": recording.settings_of(query),
        "prompt_tokens": prompt_tokens,
        "price": recording.price,
        "samples": [_judged(choice, spec) for choice in choices],
    }
    return {name: value for name, value in line.items() if value is not None}


def _judged(choice: Mapping[str, Any], spec: VerifierSpec) -> dict[str, Any]:
    text = str(choice["text"])
    answer = verification.read_answer(text, spec)
    correct = int(answer is not None and verification.judge(text, spec))
    given = {name: value for name, value in choice.items() if value is not None}
    return {"answer": answer, "correct": correct, **given}


def _question(messages: Iterable[Mapping[str, Any]]) -> str:
    """The text of the last message of a user."""
    asked = [message for message in messages if message.get("role") == "user"]
    content = asked[-1]["content"] if asked else ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")


def _for_model(raw: bytes, model: str | None) -> bytes:
    """The line with another model; a line that is no such object stays as it is, for the parser to refuse."""
    if model is None:
        return raw
    try:
        line = json.loads(raw)
        line["body"]["model"] = model
    except (ValueError, KeyError, TypeError, RecursionError):
        return raw
    return json.dumps(line).encode()


def _doubles(queries: Iterable[ParsedQuery]) -> list[str]:
    first: dict[str | None, int] = {}
    return [
        f"Lines {earlier} and {query.line} have the same custom_id {query.custom_id!r}."
        for query in queries
        if (earlier := first.setdefault(query.custom_id, query.line)) != query.line
    ]


def _short(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "...") if isinstance(value, str) else text


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
