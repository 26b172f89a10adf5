"""Thousands of mutated lines: each ends up as one row, and nothing but our own errors is ever raised."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch, QueryRow
from scheduler.errors import SchedulerError
from scheduler.files import store_upload
from scheduler.finalization import output_chunks
from scheduler.intake import advance_intake, create_batch, create_interactive
from scheduler.requests import ENDPOINT, Defaults, KnownLlm, Limits, Options, ParsedQuery, Rejection, parse_line
from scheduler.settings import Settings
from scheduler.states import QueryState
from tests import mutations
from tests.factories import MODEL, NOW, add_tenant, new_sessions

FUZZ_FILES = int(os.environ.get("FUZZ_FILES", "1000"))
FUZZ_SEED = int(os.environ.get("FUZZ_SEED", "1"))
SETTINGS = Settings()
LIMITS = Limits(llms={MODEL: KnownLlm(context_tokens=4096, tokenizer_path=None, is_priced=True)})
GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": ENDPOINT,
    "body": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is 12 + 9?"}, {"role": "user", "content": [{"type": "text"}]}],
        "max_tokens": 64,
        "temperature": 0.5,
        "stop": ["\n"],
        "allotd": {"strategy": "auto", "verifier": "numeric", "reference": "21", "samples_max": 4, "cost_max_usd": "1"},
    },
}
TENANT = "tenant_acme"
NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308, 5e-324])
STRINGS = st.one_of(
    st.text(max_size=20), st.sampled_from(["\0", "\ud800", "\udc00x", "é" * 300, "POST", ENDPOINT, MODEL])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def sessions() -> Iterator[sessionmaker[Session]]:
    """A database with a tenant; what a test writes is rolled back."""
    with new_sessions() as sessions:
        with sessions.begin() as session:
            add_tenant(session)
        yield sessions


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every place in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, child in inner for each in paths(child, (*path, key)))]


PATHS = paths(GOOD)


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """The value with another one in one place."""
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], by)
    return copy


@st.composite
def mutated_values(draw: st.DrawFn) -> bytes:
    """A good line with some value in it replaced by another."""
    return json.dumps(replaced(GOOD, draw(st.sampled_from(PATHS)), draw(VALUES))).encode()


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """A good line with some of its bytes cut out, replaced or repeated."""
    raw = json.dumps(GOOD).encode()
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(raw)))
        end = draw(st.integers(begin, min(len(raw), begin + 12)))
        new = draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    [b"NaN", b"1e400", b"[" * 80, rb"\ud800", rb"\u0000", b"\xed\xa0\x80", b"}", b'"', b"\r"]
                ),
            )
        )
        raw = raw[:begin] + new + raw[end:]
    return raw


MUTATED = st.one_of(mutated_values(), mutated_bytes(), st.binary(max_size=30))


@settings(max_examples=1000, deadline=None)
@given(raw=MUTATED)
@example(raw=b"")
@example(raw=b"\xef\xbb\xbf{}")
def test_every_line_is_a_query_or_a_rejection_that_says_why(raw: bytes) -> None:
    result = parse_line(raw, 3, Defaults(options=Options()), LIMITS)

    if isinstance(result, Rejection):
        assert "Line 3" in result.message
        assert result.message.endswith(".")
        assert json.loads(result.as_json())["code"]
    else:
        assert isinstance(result, ParsedQuery)
        assert json.loads(result.body_json)["messages"]
        assert result.body_json.encode()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(lines=st.lists(MUTATED, min_size=1, max_size=25), step=st.integers(1, 9))
def test_every_line_of_a_mutated_file_is_accounted_for(
    sessions: sessionmaker[Session], lines: list[bytes], step: int
) -> None:
    content = b"\n".join([json.dumps(GOOD | {"custom_id": "first"}).encode(), *lines])
    with sessions() as session:
        file = store_upload(session, TENANT, "a", "batch", [content], bytes_max=10**7, now=NOW)
        batch = create_batch(session, TENANT, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)

        while not advance_intake(session, batch.id, SETTINGS, NOW, step):
            pass

        rows = session.scalars(select(QueryRow).where(QueryRow.batch_id == batch.id).order_by(QueryRow.line)).all()
        numbers = [i for i, each in enumerate(content.split(b"\n"), start=1) if each.strip(b" \t\r")]
        failed = [row.line for row in rows if row.state == QueryState.FAILED]
        told = b"".join(output_chunks(session, session.get_one(Batch, batch.id), "error")).splitlines()
        assert [row.line for row in rows] == numbers
        assert sorted(json.loads(each)["error"]["line"] for each in told) == failed


@settings(max_examples=300, deadline=None)
@given(raw=st.one_of(mutated_bytes(), st.builds(lambda value: json.dumps(value).encode(), VALUES)))
def test_an_interactive_body_is_queued_or_raises_an_error_of_ours(sessions: sessionmaker[Session], raw: bytes) -> None:
    with sessions() as session:
        state, status = QueryState.QUEUED, 400

        try:
            state = QueryState(session.get_one(QueryRow, create_interactive(session, TENANT, raw, now=NOW)).state)
        except SchedulerError as error:
            status = error.http_status

        assert state == QueryState.QUEUED
        assert status < 500


def test_every_line_of_thousands_of_broken_files_is_accounted_for(
    sessions: sessionmaker[Session], capsys: pytest.CaptureFixture[str]
) -> None:
    total, kinds = Counter[str](), Counter[str]()

    for name, content in mutations.files(seed=FUZZ_SEED, count=FUZZ_FILES):
        try:
            total += mutations.account(sessions, TENANT, content)
        except Exception as error:
            raise AssertionError(f"{name}: {content!r}") from error
        kinds.update(name.split("+"))

    with capsys.disabled():
        print(f"\n{FUZZ_FILES} broken files on SQLite, seed {FUZZ_SEED}: {mutations.summary(total)}")
    assert total["lines"] == sum(total[end] for end in mutations.ENDS)
    assert set(kinds) == set(mutations.MUTATIONS)
    assert min(total[end] for end in mutations.ENDS) > 0
