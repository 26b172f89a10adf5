"""What one line of a batch asks for, and everything that can be wrong with it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from scheduler.chat_body import ChatBody, Whole, passed_on
from scheduler.chat_checks import fault_of
from scheduler.chat_refusals import KNOWN_VALUES, REFUSED
from scheduler.core.policies import WITH_HISTORY
from scheduler.core.pricing import parse_usd
from scheduler.core.strategies.named import Unnamed, canonical, check_strategy, kind_of, needs_verdicts
from scheduler.errors import InvalidRequest, ModelUnpriced, NotFound, SchedulerError
from scheduler.jsonlines import Fault, decode, salvaged_id
from scheduler.tokens import FALLBACK_MARGIN, counter_for
from scheduler.types import Verdict
from scheduler.verification import check_spec

ENDPOINT = "/v1/chat/completions"
CUSTOM_ID_MAX = 512
TAG_MAX = 128
REFERENCE_MAX = 65_536
SAMPLES_MAX = 1024
PRIORITY_MAX = 100
MODELS_MAX = 8
SHOWN_MAX = 64
"""Characters of a wrong value that an error message repeats."""


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
    models: Annotated[list[str], Meta(min_length=1, max_length=MODELS_MAX)] | str | None = None


class Body(ChatBody):
    """A chat completion request with what allotd is told about it."""

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
    has_history: bool = False
    """Whether the predictor in use remembers what earlier queries of it reached."""


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
    """A request that can be run. `body_json` is what the model server gets, without what is allotd's own.

    `models` are all that may answer it, where there are several.
    """

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
    models: tuple[str, ...] = ()


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
        if options.models is not None:
            _check_choice(options.strategy, "metadata.models")
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
    if (fault := fault_of(checked, where)) is not None:
        raise _Refused(fault.code, fault.param, fault.problem)
    llm = _check_model(checked.model, limits, f"{where}model")
    tokens_max = _check_tokens_max(checked, llm, where)
    cost_max_usd = checked.allotd.cost_max_usd if checked.allotd is not None else None
    options = _check_options(checked.allotd, defaults, limits, llm, f"{where}allotd.")
    kept = _for_the_server(body, tokens_max)
    body_json = msgspec.json.encode(kept)
    models = _models(checked.model, options, f"{where}allotd.models")
    for model in models or (checked.model,):
        known = _check_model(model, limits, f"{where}allotd.models")
        _check_length(body, len(body_json), model, known, where)
    return ParsedQuery(
        line=line,
        custom_id=custom_id,
        model=checked.model,
        body_json=body_json.decode(),
        strategy=canonical(options.strategy or "auto"),
        samples_max=options.samples_max,
        tokens_max=options.tokens_max,
        verifier=options.verifier,
        reference=options.reference,
        task=options.task,
        priority=options.priority or 0,
        limit_nanousd=None if cost_max_usd is None else _limit_nanousd(cost_max_usd, f"{where}allotd."),
        models=models,
    )


def _models(model: str, options: Options, param: str) -> tuple[str, ...]:
    """All models that may answer, that of the body first; none where it is the only one."""
    named = options.models or []
    named = [name.strip() for name in named.split(",")] if isinstance(named, str) else named
    models = tuple(dict.fromkeys([model, *named]))
    if len(models) == 1:
        return ()
    if len(models) > MODELS_MAX:
        raise _Refused(
            "invalid_value", param, f"{param} names {len(models)} models; at most {MODELS_MAX} may answer a line"
        )
    _check_choice(options.strategy, param)
    return models


def _check_choice(strategy: str | None, param: str) -> None:
    if strategy not in {None, "auto"}:
        problem = f"{param} needs the strategy auto, which chooses among them, not {strategy}; leave one of them out"
        raise _Refused("invalid_value", param, problem)


def _check_model(model: str, limits: Limits, param: str) -> KnownLlm:
    llm = limits.llms.get(model)
    if llm is None:
        served = ", ".join(f"'{name}'" for name in sorted(limits.llms)[:5]) or "none yet"
        raise _Refused("model_not_found", param, f"{param} {_quoted(model)} is not served; served: {served}")
    if not llm.is_priced:
        raise _Refused(
            "model_unpriced",
            param,
            f"{param} '{model}' has no price, so its cost cannot be limited; an admin sets one with "
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


def _check_options(given: Options | None, defaults: Options, limits: Limits, llm: KnownLlm, where: str) -> Options:
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
            models=given.models or defaults.models,
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
    _check_needs(options, llm, where)
    return options


def _check_strategy(strategy: str, where: str) -> None:
    try:
        check_strategy(strategy)
    except Unnamed as problem:
        raise _Refused("invalid_value", f"{where}strategy", f"{where}strategy {_quoted(strategy)} {problem}") from None


def _check_needs(options: Options, llm: KnownLlm, where: str) -> None:
    """What the strategy of a line needs: verdicts, or a predictor that remembers what earlier queries reached."""
    kind = kind_of(options.strategy or "auto")
    if needs_verdicts(kind) and (options.verifier is None or options.reference is None):
        raise _Refused(
            "invalid_verifier",
            f"{where}verifier",
            f"{where}strategy {kind} needs a verifier with a reference; without them use self_consistency",
        )
    if kind in WITH_HISTORY and not llm.has_history:
        raise _Refused(
            "invalid_value",
            f"{where}strategy",
            f"{where}strategy {kind} measures on earlier queries what budgets bring, and no predictor in use has read "
            f"any of this model; an admin trains one with `allotd predictor train`",
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


def _for_the_server(body: Mapping[str, Any], tokens_max: int | None) -> dict[str, Any]:
    """The body without what allotd itself decides; one spelling of the token limit."""
    kept = passed_on(body)
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


_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*?)`)?$", re.DOTALL)
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
            code, problem = _of_unknown(name, path.removesuffix("."))
            path = f"{path.removesuffix('.')}.{name}".removeprefix(".")
        case ["Expected ", wanted, ", got ", got, ""]:
            names = [_WORDS.get(name, name) for name in wanted.split(" | ") if name != "null"]
            code, problem = "invalid_type", f"must be {' or '.join(names)}, not {_WORDS.get(got, got)}"
        case ["Expected ", "array", " of length >= 1"]:
            problem = "is empty; give at least one"
        case ["Expected ", wanted, bound]:
            problem = f"must be {_WORDS.get(wanted, wanted)}{_spoken(bound, 'characters' if wanted == 'str' else '')}"
        case _ if what.startswith(("Invalid enum value", "Invalid value")):
            code, problem = _of_value(what.partition(" value ")[2].strip("'"), path)
        case _:
            problem = f"is wrong: {what}"
    return _Refused(code, path, f"{path} {problem}")


def _of_unknown(name: str, path: str) -> tuple[str, str]:
    """The code and the sentence for a field that is not taken."""
    if path.endswith("allotd") or path == "metadata":
        return "unknown_field", f"is not known; known here: {', '.join(Options.__struct_fields__)}"
    if name in REFUSED:
        return "field_unsupported", REFUSED[name]
    return "unknown_field", "is not known, and nothing unknown is passed to the model server; leave it out"


def _of_value(value: str, path: str) -> tuple[str, str]:
    """The code and the sentence for a value that is none of the few its field takes."""
    names = re.sub(r"\[[^]]*\]", "", path).split(".")
    if names[-2:] == ["content", "type"] and value in REFUSED:
        return "field_unsupported", f"is '{value}', which {REFUSED[value]}"
    ends = (".".join(names[-length:]) for length in (2, 1))
    known = next((KNOWN_VALUES[end] for end in ends if end in KNOWN_VALUES), ())
    listed = f"; known: {', '.join(known)}" if known else ""
    return "invalid_value", f"has the unknown value '{value[:SHOWN_MAX]}'{listed}"


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
