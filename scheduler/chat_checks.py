"""What no schema says of a chat body: switches that must stay off, grammars without end, arguments that are no JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.chat_body import AssistantMessage, ChatBody, Message, SchemaFormat
from scheduler.errors import InvalidRequest
from scheduler.jsonlines import Fault, decode
from scheduler.types import Verdict
from scheduler.verification import check_spec

SCHEMA_BYTES_MAX = 32_768
"""A grammar is compiled from a schema before the first token, on the server's processor and for nothing."""
SCHEMA_COUNT_MAX = 1024
"""The most that a schema may count to in one place: grammars repeat a rule as often as it says."""
COUNTING = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyFault:
    """What in a body of the right types cannot be sent to a model server."""

    code: str
    param: str
    problem: str


def fault_of(body: ChatBody, where: str) -> BodyFault | None:
    """The first thing in a body that cannot be done, or None. `where` stands before the names of fields."""
    if body.stream:
        return _fault("stream_unsupported", f"{where}stream", "is true, and answers are not streamed")
    if body.n is not None and body.n != 1:
        many = f"is {body.n}, and one answer is returned; for more samples set {where}allotd.samples_max"
        return _fault("n_unsupported", f"{where}n", many)
    if body.logprobs or body.top_logprobs:
        name = "logprobs" if body.logprobs else "top_logprobs"
        asks = "asks for log-probabilities, and answers carry none; leave it out"
        return _fault("logprobs_unsupported", f"{where}{name}", asks)
    for path, schema in _schemas(body, where):
        if (refused := _fault_of_schema(json.dumps(schema))) is not None:
            return _fault("invalid_schema", path, refused)
    return _fault_of_calls(body.messages, where)


def _fault(code: str, param: str, problem: str) -> BodyFault:
    return BodyFault(code=code, param=param, problem=f"{param} {problem}")


def _schemas(body: ChatBody, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON schema from which the model server may make a grammar."""
    for i, tool in enumerate(body.tools or ()):
        if tool.function.parameters is not None:
            yield f"{where}tools[{i}].function.parameters", tool.function.parameters
    if isinstance(body.response_format, SchemaFormat):
        yield f"{where}response_format.json_schema.schema", body.response_format.json_schema.schema


@functools.lru_cache(maxsize=1024)
def _fault_of_schema(text: str) -> str | None:
    """What is wrong with a schema. Remembered, because one schema often stands on every line."""
    if len(text) > SCHEMA_BYTES_MAX:
        return f"has {len(text)} bytes; {SCHEMA_BYTES_MAX} are allowed"
    try:
        check_spec(Verdict.JSON_SCHEMA, text)
    except InvalidRequest as error:
        return f"is refused: {error.message.removesuffix('.')}"
    for keyword, value in _keywords(json.loads(text)):
        if keyword in COUNTING and isinstance(value, int | float) and value > SCHEMA_COUNT_MAX:
            return f"counts to {value} with {keyword}; {SCHEMA_COUNT_MAX} is the most"
        if keyword == "patternProperties":
            return "has patternProperties, which is not taken; name the properties"
        if keyword == "pattern" and isinstance(value, str) and (wrong := _fault_of_pattern(value)) is not None:
            return f"has a pattern that is refused: {wrong}"
    return None


def _fault_of_pattern(pattern: str) -> str | None:
    """What is wrong with a pattern; RE2 refuses those that could not be matched in linear time and bounded memory."""
    try:
        check_spec(Verdict.REGEX, pattern)
    except InvalidRequest as error:
        return error.message.removesuffix(".")
    return None


def _keywords(value: object) -> Iterator[tuple[str, object]]:
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield from here.items()
            waiting.extend(here.values())
        elif isinstance(here, list):
            waiting.extend(here)


def _fault_of_calls(messages: Sequence[Message], where: str) -> BodyFault | None:
    """Arguments of past calls that are no JSON object: the model server would parse them without these bounds."""
    for i, message in enumerate(messages):
        if not isinstance(message, AssistantMessage):
            continue
        for j, call in enumerate(message.tool_calls or ()):
            decoded = decode(call.function.arguments.encode() or b"{}")
            if isinstance(decoded, Fault) or not isinstance(decoded, dict):
                problem = decoded.problem if isinstance(decoded, Fault) else "is not an object"
                path = f"{where}messages[{i}].tool_calls[{j}].function.arguments"
                return _fault("invalid_message", path, f"must be a JSON object as text: it {problem}")
    return None
