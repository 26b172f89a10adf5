"""What a completion answers, and whether that is right. Nothing a model or a tenant writes makes these fail or hang."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jsonschema
import re2
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from scheduler.core import answers
from scheduler.errors import InvalidRequest
from scheduler.sandbox import OutOfTime, Sandboxes
from scheduler.types import Sample, Verdict, VerifierSpec

REFERENCE_CHARACTERS_MAX = 100_000
EXPRESSION_CHARACTERS_MAX = 1_000
"""The longest formula in math-verify's own tests is a tenth of this; the parser's time grows faster than the length."""
PATTERN_CHARACTERS_MAX = 1_000
PATTERN_MEMORY_BYTES = 1024 * 1024
"""What a compiled pattern may take. RE2's time grows with pattern times text, so these two bound a search to 1-2 s."""
PATTERN_TEXT_CHARACTERS_MAX = 50_000
JSON_CHARACTERS_MAX = 1_000_000


def read_answer(text: str, spec: VerifierSpec | None) -> str | None:
    """What a completion answers, such that equal answers are equal strings; None where it cannot be read."""
    text = _readable(text)
    match spec.kind if spec is not None else Verdict.EXACT:
        case Verdict.NUMERIC:
            return answers.read_number(text)
        case Verdict.MATH:
            expression = answers.read_expression(text)
            return None if expression is None else _canonical_math(expression)
        case Verdict.CHOICE:
            assert spec is not None
            return answers.read_choice(text, spec.reference)
        case Verdict.REGEX:
            assert spec is not None
            return _read_match(text, spec.reference)
        case Verdict.JSON_SCHEMA:
            return answers.read_json(text)
        case Verdict.EXACT:
            return answers.fold(text) or None if spec is None else answers.read_words(text)


def judge(text: str, spec: VerifierSpec) -> bool:
    """Whether a completion is right. Only for a verifier that `can_judge`."""
    answer = read_answer(text, spec)
    return answer is not None and _is_right(answer, text, spec)


def label(sample: Sample, spec: VerifierSpec | None) -> Sample:
    """The sample with its answer read, and judged where the verifier can."""
    answer = read_answer(sample.text, spec)
    if spec is None or not spec.can_judge:
        return replace(sample, answer=answer)
    return replace(sample, answer=answer, correct=answer is not None and _is_right(answer, sample.text, spec))


def check_spec(kind: Verdict, reference: str | None) -> None:
    """Refuse a verifier that could judge nothing, with what is wrong with it. Raises InvalidRequest."""
    if reference is None:
        return
    if len(reference) > REFERENCE_CHARACTERS_MAX:
        raise InvalidRequest(
            f"The verifier's reference has {len(reference)} characters; {REFERENCE_CHARACTERS_MAX} are allowed."
        )
    if not reference.strip():
        raise InvalidRequest(f"The reference of the {kind} verifier is empty; leave it out or give the right answer.")
    if kind is Verdict.NUMERIC and _reference_number(reference) is None:
        raise InvalidRequest(f"The reference {_shown(reference)} of the numeric verifier is no number within 1e308.")
    if kind is Verdict.MATH:
        _check_expression(reference)
    if kind is Verdict.REGEX:
        _check_pattern(reference)
    if kind is Verdict.JSON_SCHEMA:
        _check_schema(reference)


def _is_right(answer: str, text: str, spec: VerifierSpec) -> bool:
    assert spec.reference is not None
    match spec.kind:
        case Verdict.NUMERIC:
            number = _reference_number(spec.reference)
            return number is not None and answer == answers.canonical_number(number)
        case Verdict.MATH:
            expression = answers.read_expression(_readable(text))
            return expression is not None and _is_equal_math(expression, spec.reference)
        case Verdict.CHOICE:
            return answer == (answers.letter_of(spec.reference) or answers.read_choice(spec.reference, spec.reference))
        case Verdict.EXACT:
            return answer == answers.read_words(spec.reference)
        case Verdict.REGEX:
            return True  # an answer was read, so the pattern was found
        case Verdict.JSON_SCHEMA:
            return _fits_schema(answer, spec.reference)


def _readable(text: str) -> str:
    """The part of a completion that is read: its end, without thoughts written before it."""
    return answers.final_part(text)[-answers.TEXT_CHARACTERS_MAX :]


def _reference_number(reference: str) -> Fraction | None:
    """The number a reference is, or states as a worked solution does (`... #### 72`)."""
    return answers.number_of(answers.stated(reference) or reference)


def _canonical_math(expression: str) -> str | None:
    """The expression in canonical form, or where it cannot be parsed, as it is written but for blanks."""
    return _parsed_math(expression) or "".join(answers.storable(expression).split()) or None


@functools.lru_cache(maxsize=4096)
def _parsed_math(expression: str) -> str | None:
    number = answers.number_of(expression)
    if number is None and _is_parseable(expression):
        canonical = _in_sandbox("canonical", expression)
        if not isinstance(canonical, str):
            return None
        number = answers.number_of(canonical)
        if number is None:
            return canonical
    return None if number is None else answers.canonical_number(number)


@functools.lru_cache(maxsize=4096)
def _is_equal_math(expression: str, reference: str) -> bool:
    right = answers.read_expression(reference) if answers.stated(reference) or "$" in reference else reference
    if right is None or not _can_share_units(expression, right):
        return False
    if _canonical_math(expression) == _canonical_math(right):
        return True
    parsed, wanted = _parsed_math(expression), _parsed_math(right)
    if parsed is None or wanted is None:
        return False
    if answers.number_of(parsed) is not None and answers.number_of(wanted) is not None:
        return False  # math-verify takes numbers for equal that differ in the seventh decimal
    return _in_sandbox("is_equal", expression, right) is True


def _can_share_units(expression: str, right: str) -> bool:
    """Whether the two name the same unit, or one of them none: math-verify drops units before it compares."""
    units = [answers.unit_of(each) for each in (expression, right)]
    return None in units or units[0] == units[1]


def _is_parseable(expression: str) -> bool:
    return len(expression) <= EXPRESSION_CHARACTERS_MAX and "\\boxed" not in expression


def _read_match(text: str, pattern: str | None) -> str | None:
    if pattern is None:
        return answers.fold(text) or None
    found = _compiled(pattern).search(answers.storable(text)[-PATTERN_TEXT_CHARACTERS_MAX:])
    if found is None:
        return None
    return str((found.group(1) if found.re.groups else None) or found.group(0))


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    """The pattern for RE2, whose time is linear in the text: the standard library's can take forever."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PATTERN_MEMORY_BYTES
    return re2.compile(pattern, options)


def _fits_schema(value: str, schema: str) -> bool:
    return len(value) <= JSON_CHARACTERS_MAX and _in_sandbox("fits_schema", value, schema) is True


def _check_expression(reference: str) -> None:
    expression = answers.stated(reference) or reference
    if len(expression) > EXPRESSION_CHARACTERS_MAX:
        raise InvalidRequest(
            f"The reference of the math verifier has {len(expression)} characters; "
            f"{EXPRESSION_CHARACTERS_MAX} are allowed."
        )


def _check_pattern(pattern: str) -> None:
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise InvalidRequest(
            f"The pattern of the regex verifier has {len(pattern)} characters; {PATTERN_CHARACTERS_MAX} are allowed."
        )
    try:
        _compiled(pattern)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise InvalidRequest(
            f"The pattern {_shown(pattern)} of the regex verifier is refused: {reason}. "
            "Patterns are those of RE2: no look-around, no back-references."
        ) from None


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text, parse_constant=_no_constant)
        if not isinstance(schema, dict):
            raise InvalidRequest("The JSON schema is wrong: it must be an object.")
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator.check_schema(schema)
        for key, value in _members(schema):
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                _check_resolves(value, schema, validator)
    except jsonschema.SchemaError as error:
        raise InvalidRequest(f"The JSON schema is wrong at {error.json_path}: {_shown(error.message)}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The reference of the json_schema verifier is no JSON: {_shown(str(error))}") from None


def _check_resolves(reference: str, schema: object, validator: Any) -> None:
    resource = specification_with(validator.META_SCHEMA["$schema"]).create_resource(schema)
    try:
        REGISTRY.resolver_with_root(resource).lookup(reference)
    except Unresolvable:
        raise InvalidRequest(
            f"The JSON schema refers to {_shown(reference)}, which is not in it; nothing is fetched, so put it there."
        ) from None


def _members(value: object) -> Iterator[tuple[str, object]]:
    """Every keyword of a schema and its parts, with what it holds; not what stands for itself, such as constants."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield from here.items()
            waiting.extend(part for key, part in here.items() if key not in ("const", "enum", "default", "examples"))
        elif isinstance(here, list):
            waiting.extend(here)


def _no_constant(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


@functools.lru_cache(maxsize=1)
def _sandboxes() -> Sandboxes:
    return Sandboxes()


def _in_sandbox(job: str, *arguments: str) -> object:
    """The job's result; None where it failed or did not end."""
    try:
        return _sandboxes().call(job, *arguments)
    except OutOfTime:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
