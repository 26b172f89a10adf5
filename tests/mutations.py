"""Batch files broken in every way that was thought of, from a seed; and the account of what became of their lines."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch, QueryRow
from scheduler.files import store_upload
from scheduler.finalization import output_chunks
from scheduler.intake import advance_intake, create_batch
from scheduler.requests import ENDPOINT
from scheduler.settings import Settings
from scheduler.states import BatchState, QueryState
from tests.factories import MODEL, NOW

Mutation = Callable[[random.Random, bytes], bytes]

LINE_BYTES_MAX = 4000
SETTINGS = Settings(line_bytes_max=LINE_BYTES_MAX)
BOM = b"\xef\xbb\xbf"


def good_line(chance: random.Random, number: int) -> bytes:
    """A line that runs, with some of what lines may say."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": chance.choice(["What is 2 + 2?", "naïve ☃ \U0001f600", "a\\nb"])}],
        "max_tokens": chance.randint(1, 100),
    }
    if chance.random() < 0.5:
        body["allotd"] = {"verifier": "numeric", "reference": "4", "samples_max": 4}
    if chance.random() < 0.2:
        body["tools"] = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    line = {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line, ensure_ascii=chance.random() < 0.5).encode()


def files(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """So many mutated files, each with the names of what was done to it."""
    chance = random.Random(seed)
    for _ in range(count):
        content = b"\n".join(good_line(chance, i) for i in range(chance.randint(1, 8)))
        chosen = chance.choices(list(MUTATIONS), k=chance.choice([1, 1, 1, 2, 3]))
        for name in chosen:
            content = MUTATIONS[name](chance, content)
        yield "+".join(chosen), content


ENDS = ("runnable", "bad", "blank", "refused_with_the_file")
"""What becomes of a physical line: each is one of these."""


def summary(total: Counter[str]) -> str:
    """The figures in one line."""
    ends = ", ".join(f"{total[end]} {end.replace('_', ' ')}" for end in ENDS)
    codes = sum(1 for name in total if name.startswith("code:"))
    return f"{total['lines']} lines = {ends}; {total['files_refused']} files refused whole; {codes} kinds of error"


def account(sessions: sessionmaker[Session], tenant_id: str, content: bytes) -> Counter[str]:
    """Take a file in and say what became of its physical lines; fails where one is missing or told of twice.

    Nothing is kept: the transaction is rolled back.
    """
    with sessions() as session:
        file = store_upload(session, tenant_id, "a", "batch", [content], bytes_max=10**7, now=NOW)
        batch = create_batch(session, tenant_id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)
        while not advance_intake(session, batch.id, SETTINGS, NOW, lines=50):
            pass
        session.refresh(batch)
        rows = session.scalars(select(QueryRow).where(QueryRow.batch_id == batch.id).order_by(QueryRow.line)).all()
        told = [json.loads(line) for line in b"".join(output_chunks(session, batch, "error")).split(b"\n") if line]
        return _counted(content, batch, rows, told)


def _counted(content: bytes, batch: Batch, rows: Any, told: list[dict[str, Any]]) -> Counter[str]:
    lines = content.removeprefix(BOM).split(b"\n")
    numbers = [i for i, line in enumerate(lines, start=1) if line.strip(b" \t\r")]
    if not rows:
        [error, *_] = json.loads(batch.errors_json or "{}")["data"]
        assert batch.state == BatchState.FAILED
        assert error["code"] in {"invalid_encoding", "empty_file"}, error
        return Counter(files_refused=1, lines=len(lines), refused_with_the_file=len(lines))
    assert [row.line for row in rows] == numbers
    bad = [row for row in rows if row.state == QueryState.FAILED]
    assert sorted(each["error"]["line"] for each in told) == [row.line for row in bad]
    assert all(each["error"]["code"] not in {None, "internal_error"} and each["error"]["message"] for each in told)
    assert (batch.state == BatchState.FAILED) == (len(bad) == len(rows))
    return Counter(
        lines=len(lines),
        runnable=len(rows) - len(bad),
        bad=len(bad),
        blank=len(lines) - len(rows),
        **{f"code:{each['error']['code']}": 1 for each in told[:1]},
    )


def _inserted(*choices: bytes) -> Mutation:
    def mutation(chance: random.Random, content: bytes) -> bytes:
        at = chance.randint(0, len(content))
        return content[:at] + chance.choice(choices) + content[at:]

    return mutation


def _value(*values: bytes) -> Mutation:
    """Replace the number after max_tokens, or what follows the first colon where there is none."""

    def mutation(chance: random.Random, content: bytes) -> bytes:
        before, key, rest = content.partition(b'"max_tokens": ')
        digits = len(rest) - len(rest.lstrip(b"0123456789"))
        return before + key + chance.choice(values) + rest[digits:] if key else content + chance.choice(values)

    return mutation


def _in_a_string(*texts: bytes) -> Mutation:
    def mutation(chance: random.Random, content: bytes) -> bytes:
        places = [i for i in range(len(content)) if content.startswith(b'"content": "', i)]
        at = chance.choice(places) + len(b'"content": "') if places else len(content)
        return content[:at] + chance.choice(texts) + content[at:]

    return mutation


def _each_byte(chance: random.Random, content: bytes) -> bytes:
    flipped = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        if flipped:
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _cut(chance: random.Random, content: bytes) -> bytes:
    begin = chance.randint(0, len(content))
    return content[:begin] + content[chance.randint(begin, len(content)) :]


def _lines(change: Callable[[random.Random, list[bytes]], list[bytes]]) -> Mutation:
    return lambda chance, content: b"\n".join(change(chance, content.split(b"\n")))


def _encoded(encoding: str) -> Mutation:
    return lambda _chance, content: content.decode(errors="replace").encode(encoding, errors="replace")


MUTATIONS: dict[str, Mutation] = {
    "byte flips": _each_byte,
    "cut out": _cut,
    "truncated": lambda chance, content: content[: chance.randint(0, len(content))],
    "noise": lambda chance, content: _inserted(chance.randbytes(chance.randint(1, 9)))(chance, content),
    "utf-16": _encoded("utf-16"),
    "utf-32": _encoded("utf-32-be"),
    "latin-1": _encoded("latin-1"),
    "gzip": lambda _chance, content: gzip.compress(content, mtime=0),
    "bom first": lambda _chance, content: BOM + content,
    "bom within": _inserted(BOM),
    "crlf": lambda _chance, content: content.replace(b"\n", b"\r\n"),
    "lone cr": _inserted(b"\r", b"\r\r"),
    "nul": _inserted(b"\0", b"\0\0\0\0"),
    "blank lines": _inserted(b"\n", b"\n\n\n", b"\n \t\r\n", b"\n" * 40),
    "line separators": _inserted("\u2028".encode(), "\u2029".encode(), "\x85".encode(), b"\x0b", b"\x0c", b"\x1e"),
    "separators in strings": _in_a_string("\u2028".encode(), "\u2029\x85".encode(), b"\x7f", b"\t"),
    "giant numbers": _value(b"1e400", b"9" * 400, b"-1e-400", b"1" + b"0" * 3000, b"0x10", b"1_000", b"+1"),
    "no numbers": _value(b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b'"10"', b"[]", b"{}"),
    "surrogates": _in_a_string(rb"\ud800", rb"\udc00\ud800", b"\xed\xa0\x80", rb"\ud83d\ude00", rb"\u0000"),
    "deep nesting": _value(b"[" * 70 + b"]" * 70, b"[" * 3000, b'{"a":' * 200 + b"1" + b"}" * 200),
    "duplicate keys": lambda _chance, content: content.replace(b'"model":', b'"model": "other", "model":', 1),
    "wrong key last": lambda _chance, content: content.replace(b'"body":', b'"url": "/v1/x", "body":', 1),
    "duplicate lines": _lines(lambda chance, lines: [*lines, chance.choice(lines)]),
    "shuffled lines": _lines(lambda chance, lines: chance.sample(lines, len(lines))),
    "joined lines": lambda _chance, content: content.replace(b"\n", b" ", 1),
    "too long": _in_a_string(b"x" * LINE_BYTES_MAX),
    "as an array": lambda _chance, content: b"[" + content.replace(b"\n", b",\n") + b"]",
    "brackets": _inserted(b"}", b"{", b'"', b"\\", b"]", b","),
}
