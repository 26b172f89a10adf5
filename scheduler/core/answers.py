"""What a completion answers, as a string that equal answers share. Votes and verdicts compare these strings."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

TEXT_CHARACTERS_MAX = 200_000
"""A completion's answer is looked for at its end; what lies further back than this is not read."""
NUMBER_SEARCH_CHARACTERS = 10_000
"""Without words that announce it, a number counts as the answer only if it is this near to the end."""
STATED_CHARACTERS_MAX = 2_000
"""A longer statement is no answer but an essay; only its beginning is read."""
DIGITS_MAX = 400
EXPONENT_MAX = 308
"""Numbers beyond a double's range are not read: a few characters must not make gigabytes."""
_BEYOND = 10**EXPONENT_MAX
JSON_STARTS_MAX = 64
"""Brackets at which a JSON value is looked for, so that a text of nothing but brackets takes no time."""

_ANNOUNCED = re.compile(r"\banswer[*_]*(?:\s+(?:is|was|would\s+be)\b|\s*[:=])[\s:*_]*", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(?=\S)")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d|,\d)|\d+)?(?:\.\d+|(?<=\d))"
_NUMBER = re.compile(
    r"(?P<sign>(?<==)\s?-\s?|(?<![\w)\]}.%])[-+])?(?<!\w)(?<!\d\.)"
    r"(?:[$€£¥₹]\s?(?P<inner>-)?)?"
    rf"(?:(?P<whole>\d{{1,4}})[ ](?=\d+/\d))?(?P<number>{_UNSIGNED})(?:[eE](?P<exponent>[-+]?\d{{1,4}})(?!\w))?"
    rf"(?:\s?/\s?(?P<over>{_UNSIGNED}))?"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname|mbox)\s*\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?<=[\d})])(?:[\s~]|\\[,; ])*"
    r"(?:\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{(?P<text>[^{}]*)\}|(?<=[\s~])(?P<plain>[A-Za-z]+(?:/[A-Za-z]+)?))"
    r"\s*(?P<power>\^\s*\{?\s*-?\d\s*\}?)?$"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_POWER_OF_TEN = re.compile(r"\s?(?:\u00d7|\\times|\\cdot|\*)\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+]?\d{1,4})\s*\}?")
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2212", "-"),  # hyphens and the minus sign
        **dict.fromkeys("\u00a0\u3000", " "),
        **dict.fromkeys("\u2009\u202f\u200b\u2060\ufeff", ""),  # thin and invisible blanks, as between thousands
        "\u2044": "/",
    }
)
_LATEX_SPACING = re.compile(r"\\[,!;: ]|\{,\}(?=\d)|\\(?=[$%])|\\left|\\right|~")

_EDGES = (
    "!\"'()*,.:;?[]_`{}"
    "\u00a1\u00ab\u00bb\u00bf\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2026"  # European quotes and dashes
    "\u3001\u3002\u300c\u300d\u300e\u300f"  # Chinese and Japanese stops and quotes that NFKC leaves
)
_LETTER_ALONE = re.compile(r"[\s(\[*_`{$]*([A-Za-z])(?:[)\]}.:,*_`$]|\s*$)")
_LETTER_WITHIN = re.compile(r"\(([A-Za-z])\)|(?<![\w'\u2019])([A-Z])(?=[).:,*]|\s*$)")


def final_part(text: str) -> str:
    """What a reasoning model says after its thoughts, where it wrote them into the text; else the whole text."""
    return text.rpartition("</think>")[2].strip() or text


def stated(text: str) -> str | None:
    """What the text says its answer is: in a box, behind `####`, or after "the answer is"; None where it does not."""
    said = last_boxed(text) or _after_hashes(text) or _announced(text)
    return said[:STATED_CHARACTERS_MAX] if said else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last closed `\boxed{...}`; None where there is none, or nothing in it."""
    end = len(text)
    for _ in range(8):  # a box that was cut off may hide a whole one before it
        start = text.rfind("\\boxed", 0, end)
        if start < 0:
            return None
        content = _braced(text, start + len("\\boxed"))
        if content is not None and content.strip():
            return content.strip()
        end = start
    return None


def read_number(text: str) -> str | None:
    """The number a text answers with: the stated one, or else its last, in canonical form."""
    said = stated(text)
    if said is not None:
        # "3 + 4 = 7 apples in 2 bags" states 7: what follows the last equals sign, and there the first number.
        for part in (said.rpartition("=")[2], said):
            first = next(_numbers("=" + part), None)
            if first is not None:
                return canonical_number(first)
    found = list(_numbers(text[-NUMBER_SEARCH_CHARACTERS:]))
    return canonical_number(found[-1]) if found else None


def number_of(text: str) -> Fraction | None:
    """The number that a text is, with its currency or percent sign and unit of typesetting, but nothing else."""
    plain = _without_typesetting(last_boxed(text) or text).strip(" \n\t*_").removesuffix(".").rstrip("%").strip()
    match = _NUMBER.fullmatch(plain) if plain else None
    return None if match is None else _value(match)


def canonical_number(number: Fraction) -> str:
    """One string per number: a decimal where it ends, else a fraction in lowest terms."""
    twos, fives, rest = 0, 0, number.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    if rest != 1:
        return f"{number.numerator}/{number.denominator}"
    places = max(twos, fives)
    digits = str(int(abs(number) * 10**places)).zfill(places + 1)
    whole, decimals = (digits[:-places], "." + digits[-places:]) if places else (digits, "")
    return f"{'-' if number < 0 else ''}{whole}{decimals}"


def read_expression(text: str) -> str | None:
    """The mathematical expression a text answers with, as it is written: stated, or the last formula or number."""
    text = storable(text)
    said = stated(text)
    if said is not None:
        formulas = list(_formulas(said))
        return formulas[-1] if formulas else said.strip(" .:*_$") or None
    formulas = list(_formulas(text[-NUMBER_SEARCH_CHARACTERS:]))
    return formulas[-1] if formulas else read_number(text)


def unit_of(expression: str) -> str | None:
    """The unit behind an expression's number, as in "5 cm" and "5\\text{ cm}", in a form that equal units share."""
    match = _UNIT.search(expression.strip().rstrip("."))
    if match is None:
        return None
    unit = (match["text"] if match["text"] is not None else match["plain"]) + (match["power"] or "")
    return re.sub(r"[\s{}^.]", "", unit).casefold().removesuffix("s") or None


def read_choice(text: str, reference: str | None) -> str | None:
    """The option a text picks: a letter, or where the reference is no letter, the option's words."""
    said = stated(text)
    if reference is not None and letter_of(reference) is None:
        picked = said if said is not None else text.strip()
        return fold(re.split(r"[.,;:\n]", picked, maxsplit=1)[0]) or fold(picked) or None
    if said is not None:
        return letter_of(said) or _letter_first(said) or _letter_within(said)
    alone = letter_of(text) if "\n" not in text.strip() else None
    return alone or _letter_within(text)


def letter_of(text: str) -> str | None:
    """The letter with which an option is named, as in "B", "(b)" or "B) Paris"."""
    match = _LETTER_ALONE.match(_TEXT_COMMAND.sub(r"\1", text).strip())
    return match[1].upper() if match else None


def read_words(text: str) -> str | None:
    """The stated answer, or else the whole text, without what does not matter in words."""
    said = stated(text)
    return (fold(said) if said is not None else "") or fold(text) or None


def fold(text: str) -> str:
    """The text without differences of case, spacing and punctuation around its words."""
    plain = storable(unicodedata.normalize("NFKC", text).casefold())
    words = plain.split()
    bare = [stripped for word in words if (stripped := word.strip(_EDGES))]
    return " ".join(bare or words)


def storable(text: str) -> str:
    """The text as any database takes it: no lone surrogates, no NUL."""
    return text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")


def read_json(text: str) -> str | None:
    """The first JSON value of a text, also inside a fence, in canonical form."""
    for candidate in _json_candidates(text):
        try:
            return canonical_json(candidate)
        except (ValueError, RecursionError):
            continue
    return None


def canonical_json(text: str) -> str:
    """The JSON value that a text is, or the object or array it begins with: keys sorted, no blanks, 1.0 written as 1.

    Raises ValueError or RecursionError where there is none.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
    value = decoder.raw_decode(text)[0] if text.startswith(("{", "[")) else decoder.decode(text)
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _letter_first(said: str) -> str | None:
    match = re.match(r"[\s(\[*_]*([A-Z])\b", said)
    return match[1] if match else None


def _letter_within(text: str) -> str | None:
    letters = [bracketed or bare for bracketed, bare in _LETTER_WITHIN.findall(text)]
    return letters[-1].upper() if letters else None


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` (blanks aside) and its partner."""
    start += len(text[start : start + 8]) - len(text[start : start + 8].lstrip())
    if text[start : start + 1] != "{":
        return None
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start + 1 : start + match.start()]
    return None


def _after_hashes(text: str) -> str | None:
    found = list(_HASHES.finditer(text))
    return text[found[-1].end() :].split("\n", 1)[0].strip() if found else None


def _announced(text: str) -> str | None:
    said = None
    for match in _ANNOUNCED.finditer(text):
        sentence = text[match.end() : match.end() + STATED_CHARACTERS_MAX]
        end = _SENTENCE_END.search(sentence)
        said = sentence[: end.start() if end else None].strip() or said
    return said


def _formulas(text: str) -> Iterator[str]:
    for match in _FORMULA.finditer(text):
        formula = next(group for group in match.groups() if group is not None).strip()
        if formula:
            yield formula


def _numbers(text: str) -> Iterator[Fraction]:
    for match in _NUMBER.finditer(_without_typesetting(text)):
        value = _value(match)
        if value is not None:
            yield value


def _without_typesetting(text: str) -> str:
    """The text with LaTeX and Unicode ways of writing numbers turned into plain ones."""
    plain = text if text.isascii() else _without_typography(text)
    plain = _LATEX_SPACING.sub(lambda m: "," if m[0] == "{,}" else "", plain)
    plain = _TEXT_COMMAND.sub(r" \1 ", plain)
    plain = _FRACTION.sub(_plain_fraction, plain)
    return _POWER_OF_TEN.sub(r"e\1", plain)


def _plain_fraction(match: re.Match[str]) -> str:
    # A digit right before it makes a mixed number: 1\frac{1}{2} is one and a half, not 11/2.
    is_mixed = match.string[: match.start()][-1:].isdigit()
    return f"{' ' if is_mixed else ''}{(match[1] or match[2] or '').strip()}/{(match[3] or match[4] or '').strip()}"


def _without_typography(text: str) -> str:
    """The text with plain hyphens and blanks, and one-character fractions set off from a whole number before them."""
    spelled = (
        " " + unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith("<fraction>") else c
        for c in text
    )
    return "".join(spelled).translate(_TYPOGRAPHY)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number that was matched; None where it is out of range or divides by zero."""
    number, over = (match[name].replace(",", "") if match[name] else None for name in ("number", "over"))
    exponent = int(match["exponent"] or 0)
    if not number or len(number) > DIGITS_MAX or len(over or "") > DIGITS_MAX or abs(exponent) > EXPONENT_MAX:
        return None
    value = Fraction(number)
    if exponent:
        value *= Fraction(10) ** exponent
    if over is not None:
        divisor = Fraction(over)
        if divisor == 0:
            return None
        value /= divisor
    value += int(match["whole"] or 0)
    if abs(value) >= _BEYOND:
        return None
    is_negative = "-" in (match["sign"] or "") or match["inner"] is not None
    return -value if is_negative else value


def _json_candidates(text: str) -> Iterator[str]:
    for fence in _FENCE.finditer(text):
        yield fence[1].strip()
    yield text.strip()
    for count, start in enumerate(re.finditer(r"[{\[]", text)):
        if count == JSON_STARTS_MAX:
            return
        yield text[start.start() :]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float | int:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is out of range")
    return int(value) if value.is_integer() else value
