"""What one line of a batch asks for, and everything that can be wrong with it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.core.pricing import parse_usd
from scheduler.core.strategies import STRATEGIES
from scheduler.errors import InvalidRequest, ModelUnpriced, NotFound, SchedulerError
from scheduler.jsonlines import Fault, decode, salvaged_id
from scheduler.tokens import FALLBACK_MARGIN, counter_for
from scheduler.types import Verdict
from scheduler.verification import check_spec

ENDPOINT = "/v1/chat/completions"
CUSTOM_ID_MAX = 512
TAG_MAX = 128
REFERENCE_MAX = 65_536
TOKENS_MAX = 10_000_000
"""Ten times the longest context that is served in 2026; a larger number is a mistake."""
SAMPLES_MAX = 1024
PRIORITY_MAX = 100
SHOWN_MAX = 64
"""Characters of a wrong value that an error message repeats."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Whole = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | UnsetType = UNSET
    image_url: Any = UNSET
    video_url: Any = UNSET
    audio_url: Any = UNSET


class Message(msgspec.Struct):
    """One message of a chat."""

    role: Literal[ROLES]  # type: ignore[valid-type]
    content: str | Annotated[list[Part], Meta(min_length=1)] | UnsetType | None = UNSET
    name: str | UnsetType | None = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType | None = UNSET
    function_call: dict[str, Any] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `allotd` object of a line's body, and what a batch's metadata may say once for all of its lines."""

    strategy: str | None = None
    samples_max: Annotated[int, Meta(ge=1, le=SAMPLES_MAX)] | None = None
    tokens_max: Whole | None = None
    cost_max_usd: str | int | float | None = None
    verifier: str | None = None
    reference: Annotated[str, Meta(max_length=REFERENCE_MAX)] | None = None
    task: Annotated[str, Meta(max_length=TAG_MAX)] | None = None
    priority: Annotated[int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] | None = None


class Body(msgspec.Struct):
    """A chat completion request: what allotd itself must understand of it. What it does not name passes through."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: Any = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None
    allotd: Options | None = None


class BatchLine(msgspec.Struct):
    """A line of OpenAI's batch format."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=CUSTOM_ID_MAX)]
    method: str
    url: str
    body: Body


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownLlm:
    """A served model, as far as a request must know it."""

    context_tokens: int
    tokenizer_path: str | None
    is_priced: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What requests are checked against."""

    llms: Mapping[str, KnownLlm]
    samples_limit: int = SAMPLES_MAX


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What the batch says for lines that do not say it themselves."""

    options: Options = field(default_factory=Options)
    endpoint: str = ENDPOINT

    def __post_init__(self) -> None:
        assert self.options.cost_max_usd is None, "a batch's cost_max_usd limits the batch, not each line"


@dataclass(kw_only=True, slots=True)
class ParsedQuery:
    """A request that can be run. `body_json` is what the model server gets, without what is allotd's own."""

    line: int
    custom_id: str | None
    model: str
    body_json: str
    strategy: str
    samples_max: int | None
    tokens_max: int | None
    verifier: str | None
    reference: str | None
    task: str | None
    priority: int
    limit_nanousd: int | None


@dataclass(kw_only=True, slots=True)
class Rejection:
    """Why a line cannot be run. `custom_id` is set where it is usable, `said` to whatever the line has in its place."""

    line: int
    code: str
    message: str
    param: str | None = None
    custom_id: str | None = None
    said: str | None = None

    def as_json(self) -> str:
        """The rejection as a query row keeps it."""
        return json.dumps(
            {
                "code": self.code,
                "message": self.message,
                "line": self.line,
                "custom_id": self.custom_id if self.custom_id is not None else self.said,
                "param": self.param,
            }
        )


class _Refused(Exception):
    """What stops a request, on its way to the one place that tells it; it never leaves this module."""

    def __init__(self, code: str, param: str | None, problem: str) -> None:
        self.code, self.param, self.problem = code, param, problem


def parse_line(raw: bytes, line: int, defaults: Defaults, limits: Limits) -> ParsedQuery | Rejection:
    """One line of a batch's file as a query, or why it is none."""
    value = decode(raw)
    if isinstance(value, Fault):
        name = salvaged_id(raw)
        said = _shown(name) if name is not None else None
        return Rejection(line=line, code=value.code, message=f"Line {line} {value.problem}.", said=said)
    if not isinstance(value, dict):
        problem = (
            f"Line {line} is {_word_for(value)}, not an object; write {{...}} with custom_id, method, url and body."
        )
        return Rejection(line=line, code="invalid_line", message=problem)
    custom_id = value.get("custom_id")
    try:
        _check_custom_id(custom_id)
    except _Refused as refused:
        return _rejection(line, refused, said=_shown(custom_id) if custom_id is not None else None)
    try:
        _check_envelope(value, defaults.endpoint)
        checked = _convert(value, BatchLine, "")
        return _parsed(value["body"], checked.body, defaults.options, limits, "body.", line=line, custom_id=custom_id)
    except _Refused as refused:
        return _rejection(line, refused, custom_id=custom_id)


def parse_chat_body(body: bytes | Mapping[str, Any], limits: Limits, defaults: Defaults | None = None) -> ParsedQuery:
    """The body of one interactive request as a query.

    Raises InvalidRequest, ModelUnpriced, or NotFound for an unknown model; `param` and `code` are among the attributes.
    """
    value = decode(body if isinstance(body, bytes) else json.dumps(body).encode())
    try:
        if isinstance(value, Fault):
            raise _Refused(value.code, None, f"The body {value.problem}")
        if not isinstance(value, dict):
            raise _Refused("invalid_type", None, f"The body is {_word_for(value)}, not an object")
        checked = _convert(value, Body, "")
        options = (defaults or Defaults()).options
        return _parsed(value, checked, options, limits, "", line=1, custom_id=None)
    except _Refused as refused:
        raise _as_error(refused) from None


def batch_options(metadata: Mapping[str, str]) -> tuple[Options, int | None]:
    """What a batch's metadata says for all of its lines, and the most that the whole batch may cost in nano-dollars.

    Raises InvalidRequest that names the key.
    """
    ours = {key: metadata[key] for key in Options.__struct_fields__ if key in metadata}
    cost_max_usd = ours.pop("cost_max_usd", None)
    try:
        options = _convert_text(ours)
        limit = _limit_nanousd(cost_max_usd, "metadata.") if cost_max_usd is not None else None
        _check_text(options, "metadata.")
        if options.strategy is not None:
            _check_strategy(options.strategy, "metadata.")
        if options.verifier is not None:
            _check_verifier(options.verifier, options.reference, "metadata.")
    except _Refused as refused:
        raise _as_error(refused) from None
    return options, limit


def _convert_text(strings: Mapping[str, str]) -> Options:
    """The options that strings spell: numbers may stand as text."""
    try:
        return msgspec.convert(strings, Options, strict=False)
    except msgspec.ValidationError as error:
        raise _explain(error, "metadata.") from None


def _check_custom_id(custom_id: object) -> None:
    if custom_id is None:
        raise _Refused("invalid_custom_id", "custom_id", "custom_id is missing; give each line one of its own")
    if not isinstance(custom_id, str):
        raise _Refused("invalid_custom_id", "custom_id", f"custom_id must be text, not {_word_for(custom_id)}")
    if not custom_id or len(custom_id) > CUSTOM_ID_MAX:
        length = f"has {len(custom_id)} characters" if custom_id else "is empty"
        raise _Refused("invalid_custom_id", "custom_id", f"custom_id {length}; give it 1 to {CUSTOM_ID_MAX}")
    if "\0" in custom_id:
        raise _Refused("invalid_custom_id", "custom_id", "custom_id holds a NUL character; leave it out")


def _check_envelope(value: Mapping[str, Any], endpoint: str) -> None:
    method, url = value.get("method"), value.get("url")
    if method != "POST":
        problem = "is missing" if method is None else f"is {_quoted(method)}"
        raise _Refused("invalid_method", "method", f"method {problem}; it must be 'POST'")
    if url != endpoint:
        problem = "is missing" if url is None else f"is {_quoted(url)}"
        raise _Refused("invalid_url", "url", f"url {problem}; it must be the batch's endpoint '{endpoint}'")


def _parsed(
    body: dict[str, Any],
    checked: Body,
    defaults: Options,
    limits: Limits,
    where: str,
    *,
    line: int,
    custom_id: str | None,
) -> ParsedQuery:
    """The query that a body of the right types asks for. Raises _Refused where it cannot be run."""
    _check_generation(checked, where)
    _check_messages(checked.messages, where)
    llm = _check_model(checked.model, limits, where)
    tokens_max = _check_tokens_max(checked, llm, where)
    cost_max_usd = checked.allotd.cost_max_usd if checked.allotd is not None else None
    options = _check_options(checked.allotd, defaults, limits, f"{where}allotd.")
    kept = _for_the_server(body, tokens_max)
    body_json = msgspec.json.encode(kept)
    _check_length(body, len(body_json), checked.model, llm, where)
    return ParsedQuery(
        line=line,
        custom_id=custom_id,
        model=checked.model,
        body_json=body_json.decode(),
        strategy=options.strategy or "auto",
        samples_max=options.samples_max,
        tokens_max=options.tokens_max,
        verifier=options.verifier,
        reference=options.reference,
        task=options.task,
        priority=options.priority or 0,
        limit_nanousd=None if cost_max_usd is None else _limit_nanousd(cost_max_usd, f"{where}allotd."),
    )


def _check_generation(body: Body, where: str) -> None:
    if body.stream:
        raise _Refused("stream_unsupported", f"{where}stream", f"{where}stream is true, and answers are not streamed")
    if body.n is not None and body.n != 1:
        raise _Refused(
            "n_unsupported",
            f"{where}n",
            f"{where}n is {body.n}, and one answer is returned; for more samples set {where}allotd.samples_max",
        )
    for name in ("logprobs", "top_logprobs"):
        if getattr(body, name):
            raise _Refused(
                "logprobs_unsupported",
                f"{where}{name}",
                f"{where}{name} asks for log-probabilities, and answers carry none; leave it out",
            )


def _check_messages(messages: list[Message], where: str) -> None:
    for i, message in enumerate(messages):
        content = message.content
        if isinstance(content, str):
            continue
        path = f"{where}messages[{i}].content"
        if isinstance(content, list):
            for j, part in enumerate(content):
                _check_part(part, f"{path}[{j}]")
        elif message.role != "assistant" or not (message.tool_calls or message.function_call or message.refusal):
            raise _Refused("invalid_message", path, f"{path} is missing; give text or a list of parts")


def _check_part(part: Part, path: str) -> None:
    if part.type == "text" and part.text is UNSET:
        raise _Refused("invalid_message", f"{path}.text", f"{path}.text is missing")
    for kind in ("image_url", "video_url", "audio_url"):
        given = getattr(part, kind)
        if given is UNSET:
            continue
        url = given.get("url") if isinstance(given, dict) else given
        # The model server would fetch it from inside its own network.
        if not isinstance(url, str) or not url.startswith("data:"):
            raise _Refused("remote_url", f"{path}.{kind}", f"{path}.{kind} must be a data: URL; no others are fetched")


def _check_model(model: str, limits: Limits, where: str) -> KnownLlm:
    llm = limits.llms.get(model)
    if llm is None:
        served = ", ".join(f"'{name}'" for name in sorted(limits.llms)[:5]) or "none yet"
        raise _Refused(
            "model_not_found", f"{where}model", f"{where}model {_quoted(model)} is not served; served: {served}"
        )
    if not llm.is_priced:
        raise _Refused(
            "model_unpriced",
            f"{where}model",
            f"{where}model '{model}' has no price, so its cost cannot be limited; an admin sets one with "
            f"`allotd price set {model} --prompt USD_PER_MTOK --completion USD_PER_MTOK`",
        )
    return llm


def _check_tokens_max(body: Body, llm: KnownLlm, where: str) -> int | None:
    """The most completion tokens that the request itself allows."""
    if body.max_tokens is None and body.max_completion_tokens is None:
        return None
    given = {"max_completion_tokens": body.max_completion_tokens, "max_tokens": body.max_tokens}
    for name, tokens in given.items():
        if tokens is not None and tokens > llm.context_tokens:
            raise _Refused(
                "invalid_max_tokens",
                f"{where}{name}",
                f"{where}{name} is {tokens}, more than the {llm.context_tokens} tokens of the model's context",
            )
    return min(tokens for tokens in given.values() if tokens is not None)


def _check_options(given: Options | None, defaults: Options, limits: Limits, where: str) -> Options:
    """What the line says, else what the batch says."""
    if given is None:
        options = defaults
    else:
        options = Options(
            strategy=given.strategy or defaults.strategy,
            samples_max=given.samples_max or defaults.samples_max,
            tokens_max=given.tokens_max or defaults.tokens_max,
            verifier=given.verifier or defaults.verifier,
            reference=given.reference if given.reference is not None else defaults.reference,
            task=given.task or defaults.task,
            priority=given.priority if given.priority is not None else defaults.priority,
        )
        _check_text(given, where)
    if options.strategy is not None:
        _check_strategy(options.strategy, where)
    if options.samples_max is not None and options.samples_max > limits.samples_limit:
        raise _Refused(
            "invalid_value",
            f"{where}samples_max",
            f"{where}samples_max is {options.samples_max}; this server allows at most {limits.samples_limit}",
        )
    if options.verifier is not None:
        _check_verifier(options.verifier, options.reference, where)
    if options.strategy == "best_of_n" and (options.verifier is None or options.reference is None):
        raise _Refused(
            "invalid_verifier",
            f"{where}verifier",
            f"{where}strategy best_of_n needs a verifier with a reference; without them use self_consistency",
        )
    return options


def _check_strategy(strategy: str, where: str) -> None:
    if strategy != "auto" and strategy not in STRATEGIES:
        known = ", ".join(["auto", *STRATEGIES])
        raise _Refused(
            "invalid_value", f"{where}strategy", f"{where}strategy {_quoted(strategy)} is not one of {known}"
        )


def _check_verifier(verifier: str, reference: str | None, where: str) -> None:
    if verifier not in _VERDICTS:
        known = ", ".join(Verdict)
        problem = f"{where}verifier {_quoted(verifier)} is not one of {known}"
        raise _Refused("invalid_verifier", f"{where}verifier", problem)
    fault = _fault_of_verifier(verifier, reference)
    if fault is not None:
        raise _Refused("invalid_verifier", f"{where}reference", f"{where}verifier: {fault}")


_VERDICTS = frozenset(verdict.value for verdict in Verdict)
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


@functools.lru_cache(maxsize=1024)
def _fault_of_verifier(verifier: str, reference: str | None) -> str | None:
    """What is wrong with a verifier. Remembered, because one schema or pattern often stands on every line."""
    if verifier == Verdict.NUMERIC and reference is not None and _PLAIN_NUMBER.fullmatch(reference):
        return None  # what most references are; reading one as an expression takes longer than the rest of its line
    try:
        check_spec(Verdict(verifier), reference)
    except InvalidRequest as error:
        return error.message.removesuffix(".")
    return None


def _check_text(options: Options, where: str) -> None:
    """PostgreSQL keeps no NUL in text."""
    for name in ("reference", "task"):
        text = getattr(options, name)
        if text is not None and "\0" in text:
            raise _Refused("invalid_value", f"{where}{name}", f"{where}{name} holds a NUL character; leave it out")


def _limit_nanousd(cost_max_usd: str | int | float, where: str) -> int:
    try:
        return parse_usd(str(cost_max_usd))
    except InvalidRequest as error:
        problem = f"{where}cost_max_usd: {error.message.removesuffix('.')}"
        raise _Refused("invalid_value", f"{where}cost_max_usd", problem) from None


OWN = ("allotd", "n", "stream", "stream_options", "max_completion_tokens")


def _for_the_server(body: dict[str, Any], tokens_max: int | None) -> dict[str, Any]:
    """The body without what allotd itself decides; one spelling of the token limit."""
    kept = {key: value for key, value in body.items() if key not in OWN}
    if tokens_max is not None:
        kept["max_tokens"] = tokens_max
    return kept


def _check_length(body: Mapping[str, Any], bytes_total: int, model: str, llm: KnownLlm, where: str) -> None:
    """Refuse a prompt that cannot fit in the model's context with one token of answer."""
    if bytes_total <= llm.context_tokens:  # a token is at least one byte
        return
    counter = counter_for(llm.tokenizer_path)
    tokens = counter.count_messages(body["messages"], body.get("tools") or ())
    # Counted with a foreign vocabulary, only what cannot fit by any measure is refused; the server knows the rest.
    certain = tokens if counter.is_exact else int(tokens / FALLBACK_MARGIN)
    if certain >= llm.context_tokens:
        raise _Refused(
            "context_length_exceeded",
            f"{where}messages",
            f"{where}messages has about {tokens} tokens, and the context of '{model}' holds {llm.context_tokens} with "
            "the answer; shorten the prompt",
        )


def _convert(value: dict[str, Any], kind: type[Any], where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _explain(error, where) from None


_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*?)`)?$", re.DOTALL)
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _explain(error: msgspec.ValidationError, where: str) -> _Refused:
    """msgspec's message as ours: the field's path first, then what is wrong with it."""
    match = _PATH.match(str(error))
    assert match is not None, "the pattern matches anything"
    what, path = match["what"], where + (match["path"] or "").removeprefix(".")
    code = "invalid_value"
    match what.split("`"):
        case ["Object missing required field ", name, ""]:
            path = f"{path.removesuffix('.')}.{name}".removeprefix(".")
            code, problem = "missing_field", "is missing"
        case ["Object contains unknown field ", name, ""]:
            path = f"{path.removesuffix('.')}.{name}".removeprefix(".")
            code, problem = "unknown_field", f"is not known; known here: {', '.join(Options.__struct_fields__)}"
        case ["Expected ", wanted, ", got ", got, ""]:
            names = [_WORDS.get(name, name) for name in wanted.split(" | ") if name != "null"]
            code, problem = "invalid_type", f"must be {' or '.join(names)}, not {_WORDS.get(got, got)}"
        case ["Expected ", "array", " of length >= 1"]:
            problem = "is empty; give at least one"
        case ["Expected ", wanted, bound]:
            problem = f"must be {_WORDS.get(wanted, wanted)}{_spoken(bound, 'characters' if wanted == 'str' else '')}"
        case _ if what.startswith("Invalid enum value"):
            problem = f"has the unknown value{what[18:][:SHOWN_MAX]}; known: {', '.join(ROLES)}"
        case _:
            problem = f"is wrong: {what}"
    return _Refused(code, path, f"{path} {problem}")


def _spoken(bound: str, unit: str) -> str:
    text = bound.replace(" of length", "").replace(" >= ", " of at least ").replace(" <= ", " of at most ")
    text = text.replace(" > ", " above ").replace(" < ", " below ")
    return f"{text.removesuffix('.0')} {unit}".rstrip()


def _rejection(line: int, refused: _Refused, *, custom_id: str | None = None, said: str | None = None) -> Rejection:
    return Rejection(
        line=line,
        code=refused.code,
        message=f"Line {line}: {refused.problem}.",
        param=refused.param,
        custom_id=custom_id,
        said=said,
    )


def _as_error(refused: _Refused) -> SchedulerError:
    kinds: dict[str, type[SchedulerError]] = {"model_not_found": NotFound, "model_unpriced": ModelUnpriced}
    kind = kinds.get(refused.code, InvalidRequest)
    error = kind(f"{refused.problem[0].upper()}{refused.problem[1:]}.", param=refused.param, code=refused.code)
    error.code = refused.code
    return error


def _word_for(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
    return "an object"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


def _quoted(value: object) -> str:
    return f"'{_shown(value)}'"
