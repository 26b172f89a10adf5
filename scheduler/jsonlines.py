"""Where the lines of a JSONL file begin and end, and what is wrong with bytes that are no JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

START_BYTES = 4096
"""What is kept of a line that is too long to be held: enough to see whose it is."""
DEPTH_MAX = 64
"""How deep objects and lists may nest. Tool schemas stay under 20; JSON parsers give up from about 1000 on."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FOREIGN_STARTS = (
    (b"\xff\xfe\x00\x00", "is encoded in UTF-32; save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "is encoded in UTF-32; save it as UTF-8"),
    (b"\xff\xfe", "is encoded in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is encoded in UTF-16; save it as UTF-8"),
    (b"\x1f\x8b", "is compressed with gzip; send it unpacked"),
    (b"PK\x03\x04", "is a zip archive (or a spreadsheet); send it as plain JSONL"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; send it unpacked"),
    (b"BZh", "is compressed with bzip2; send it unpacked"),
    (b"\xfd7zXZ\x00", "is compressed with xz; send it unpacked"),
    (b"PAR1", "is a Parquet file; send it as plain JSONL"),
    (b"%PDF", "is a PDF; send plain JSONL"),
)
"""How files begin that people upload by mistake, and what to do about them."""

_BLANK = re.compile(rb"[ \t\r\n]*")
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_CUSTOM_ID = re.compile(rb'(?<!\\)"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')
_decoder = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: its number in the file from 1, its bytes (None where it is too long to be held), and
    how many bytes and lines of the file are behind it. `start` is how a line begins that is too long."""

    number: int
    content: bytes | None
    end: int
    start: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why bytes are no JSON that can be worked with."""

    code: str
    problem: str


def foreign_start(start: bytes) -> str | None:
    """What is wrong with a file that begins like this, or None where it may be UTF-8 text."""
    for magic, problem in FOREIGN_STARTS:
        if start.startswith(magic):
            return f"The file {problem}."
    if b"\x00" in start[:4]:
        return "The file is encoded in UTF-16 or UTF-32, or is no text; save it as UTF-8."
    return None


def split_lines(chunks: Iterable[bytes], line_bytes_max: int, *, number: int = 0, at: int = 0) -> Iterator[Line]:
    """The lines that are not blank, holding no more than one chunk and one line at a time.

    Args:
        chunks: the file's bytes from a line's beginning on.
        number: the lines before it.
        at: the bytes before it.
    """
    buffer = head = b""
    too_long = False
    for chunk in chunks:
        buffer = buffer + chunk if buffer else chunk
        start = 0
        while (end := buffer.find(b"\n", start)) >= 0:
            blank = _BLANK.match(buffer, start)
            if not too_long and blank is not None and blank.end() > end:
                # A run of blank lines, however long, is passed over in one step.
                run_end = buffer.rfind(b"\n", start, blank.end()) + 1
                number += buffer.count(b"\n", start, run_end)
                at += run_end - start
                start = run_end
                continue
            number += 1
            at += end + 1 - start
            if not too_long and end - start <= line_bytes_max:
                yield Line(number, buffer[start:end], at)
            else:
                yield Line(number, None, at, head if too_long else buffer[start : min(end, start + START_BYTES)])
            too_long = False
            start = end + 1
        rest = len(buffer) - start
        if too_long or rest > line_bytes_max:
            head = head if too_long else buffer[start : start + START_BYTES]
            too_long = True
            at += rest
            buffer = b""
        else:
            buffer = buffer[start:]
    if too_long or buffer.strip():
        yield Line(number + 1, None if too_long else buffer, at + len(buffer), head if too_long else b"")


def decode(raw: bytes) -> Any | Fault:
    """The value of a JSON text, or why it is none that can be worked with."""
    try:
        value = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _diagnose(raw, error)
    # Counting brackets is cheap and settles it for nearly all lines; the rest are walked through.
    if raw.count(b"{") + raw.count(b"[") > DEPTH_MAX and _is_deeper(value, DEPTH_MAX):
        return Fault(code="nested_too_deep", problem=f"is nested deeper than {DEPTH_MAX} levels; flatten it")
    return value


def salvaged_id(raw: bytes) -> str | None:
    """The custom_id that bytes name which are no whole object, so that their owner can tell which line it was."""
    found = _CUSTOM_ID.search(raw)
    value = decode(found[1]) if found is not None else None
    return value if isinstance(value, str) else None


def _diagnose(raw: bytes, error: Exception) -> Fault:
    if isinstance(error, RecursionError):
        return Fault(code="nested_too_deep", problem=f"is nested deeper than {DEPTH_MAX} levels; flatten it")
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        byte, place = wrong.object[wrong.start], wrong.start + 1
        return Fault(
            code="invalid_encoding",
            problem=f"is not UTF-8: byte 0x{byte:02X} at position {place}; save the file as UTF-8",
        )
    if isinstance(error, msgspec.ValidationError):
        return Fault(code="invalid_number", problem="holds a number too large for a 64-bit float, like 1e400")
    if constant := _constant_in(raw):
        return Fault(code="invalid_number", problem=f"holds {constant}, which JSON does not know; leave it out")
    if surrogate := _LONE_SURROGATE.search(raw):
        half = surrogate.group().decode()
        return Fault(
            code="invalid_encoding",
            problem=f"holds {half} at position {surrogate.start() + 1}, half of a surrogate pair; no text has that",
        )
    return Fault(code="invalid_json", problem=f"is not JSON: {_plainly(error)}")


def _constant_in(raw: bytes) -> str | None:
    """NaN or Infinity, where Python's lenient parser finds one."""
    found: list[str] = []
    try:
        json.loads(raw, parse_constant=found.append)
    except (ValueError, RecursionError):
        return found[0] if found else None
    return found[0] if found else None


def _plainly(error: Exception) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return "it ends in the middle" if text == "Input data was truncated" else text


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists nest deeper, without recursion."""
    level = [value]
    for _ in range(levels):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
        if not inner:
            return False
        level = [each for each in inner if isinstance(each, dict | list)]
    return bool(level)
