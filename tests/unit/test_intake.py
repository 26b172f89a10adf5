"""A file becomes queries a step at a time: every line is accounted for, wherever reading is cut off."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from models.tables import Batch, File, PriceRow, QueryRow, Tenant
from scheduler.batch_view import batch_object
from scheduler.dry_runs import dry_run
from scheduler.errors import Conflict, InvalidRequest, ModelUnpriced, NotFound, TooLarge
from scheduler.files import delete_file, store_upload
from scheduler.finalization import finalize
from scheduler.intake import advance_intake, create_batch, create_interactive
from scheduler.prediction import FixedPriors
from scheduler.recovery import call_off
from scheduler.requests import ENDPOINT
from scheduler.settings import Settings
from scheduler.states import BatchState, QueryState
from scheduler.types import Arm, Prediction, Query
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, new_sessions

SETTINGS = Settings()


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


@pytest.fixture
def tenant(session: Session) -> Tenant:
    return add_tenant(session)


def line(custom_id: object = "a", **body: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is 12 + 9?"}]} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}).encode()


def open_batch(session: Session, tenant: Tenant, content: bytes, **options: Any) -> Batch:
    file = store_upload(session, tenant.id, "lines.jsonl", "batch", [content], bytes_max=10**9, now=NOW)
    return create_batch(session, tenant.id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW, **options)


def take_in(session: Session, batch: Batch, settings: Settings = SETTINGS, lines: int = 1000) -> Batch:
    while not advance_intake(session, batch.id, settings, NOW, lines):
        pass
    session.refresh(batch)
    return batch


def rows_of(session: Session, batch: Batch) -> list[tuple[Any, ...]]:
    rows = session.execute(
        select(QueryRow.line, QueryRow.custom_id, QueryRow.state, QueryRow.body_json, QueryRow.error_json)
        .where(QueryRow.batch_id == batch.id)
        .order_by(QueryRow.id)
    )
    return [tuple(row) for row in rows]


def errors_of(session: Session, batch: Batch) -> list[dict[str, Any]]:
    return [json.loads(error) for *_, error in rows_of(session, batch) if error is not None]


def reasons_of(batch: Batch) -> list[dict[str, Any]]:
    assert batch.state == BatchState.FAILED
    assert batch.failed_at == NOW
    data: list[dict[str, Any]] = json.loads(batch.errors_json or "")["data"]
    return data


def test_good_lines_wait_and_the_batch_is_in_progress(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, b"\n".join(line(f"q{i}") for i in range(5)))

    take_in(session, batch)

    assert batch.state == BatchState.IN_PROGRESS
    assert batch.in_progress_at == NOW
    assert [(number, custom_id, state) for number, custom_id, state, *_ in rows_of(session, batch)] == [
        (i + 1, f"q{i}", QueryState.QUEUED) for i in range(5)
    ]


def test_bad_lines_fail_with_their_reason_while_good_ones_wait(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, b"\n".join([line("a"), b"nope", line("b", n=3), line(7), line("c")]))

    take_in(session, batch)

    assert batch.state == BatchState.IN_PROGRESS
    assert [state for _, _, state, *_ in rows_of(session, batch)] == ["queued", "failed", "failed", "failed", "queued"]
    assert [(error["line"], error["code"], error["custom_id"]) for error in errors_of(session, batch)] == [
        (2, "invalid_json", None),
        (3, "n_unsupported", "b"),
        (4, "invalid_custom_id", "7"),
    ]
    assert batch_object(session, batch)["request_counts"] == {"total": 5, "completed": 0, "failed": 3}


@pytest.mark.parametrize("lines", [1, 2, 1000])
def test_a_duplicate_custom_id_is_named_with_both_lines_and_the_first_stands(
    session: Session, tenant: Tenant, lines: int
) -> None:
    batch = open_batch(session, tenant, b"\n".join([line("a"), line("b"), line("a"), line("b", n=2)]))

    take_in(session, batch, lines=lines)

    assert [(custom_id, state) for _, custom_id, state, *_ in rows_of(session, batch)] == [
        ("a", "queued"),
        ("b", "queued"),
        (None, "failed"),
        (None, "failed"),
    ]
    duplicate, wrong = errors_of(session, batch)
    assert duplicate["code"] == "duplicate_custom_id"
    assert "Line 3: custom_id 'a' is already that of line 1" in duplicate["message"]
    assert (duplicate["custom_id"], wrong["custom_id"]) == ("a", "b")


def test_blank_lines_are_no_lines_but_count_in_line_numbers(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, b"\n \n" + line("a") + b"\r\n\r\n\t\n" + line("b") + b"\n\n")

    take_in(session, batch, lines=1)

    assert [(number, custom_id) for number, custom_id, *_ in rows_of(session, batch)] == [(3, "a"), (6, "b")]


@pytest.mark.parametrize("lines", [1, 1000])
def test_a_byte_order_mark_is_accepted(session: Session, tenant: Tenant, lines: int) -> None:
    batch = open_batch(session, tenant, b"\xef\xbb\xbf" + line("a") + b"\n" + line("b"))

    take_in(session, batch, lines=lines)

    assert [custom_id for _, custom_id, *_ in rows_of(session, batch)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", "empty_file", "has no lines"),
        (b"\n \r\n", "empty_file", "has no lines"),
        (b"\xef\xbb\xbf", "empty_file", "has no lines"),
        (line().decode().encode("utf-16"), "invalid_encoding", "encoded in UTF-16; save it as UTF-8"),
        (line().decode().encode("utf-16-be"), "invalid_encoding", "UTF-16 or UTF-32"),
        (b"\x1f\x8b\x08\x00abc", "invalid_encoding", "compressed with gzip; send it unpacked"),
        (json.dumps([json.loads(line())], indent=1).encode(), "not_jsonl", "no line of it is an object"),
        (b"custom_id,prompt\n1,hello\n", "not_jsonl", "no line of it is an object"),
        ("café\n".encode("latin-1"), "invalid_encoding", "Line 1 is not UTF-8: byte 0xE9 at position 4"),
    ],
)
def test_a_file_of_which_nothing_can_run_fails_the_batch_and_says_why(
    session: Session, tenant: Tenant, content: bytes, code: str, says: str
) -> None:
    batch = open_batch(session, tenant, content)

    take_in(session, batch)

    assert reasons_of(batch)[0]["code"] == code
    assert says in reasons_of(batch)[0]["message"]
    assert batch_object(session, batch)["errors"]["object"] == "list"


def test_a_file_without_a_good_line_lists_its_first_errors(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, b"\n".join(line(f"q{i}", n=2) for i in range(150)))

    take_in(session, batch)

    *listed, more = reasons_of(batch)
    assert [reason["line"] for reason in listed] == list(range(1, 101))
    assert more["message"] == f"50 more lines have errors; the error file {batch.error_file_id} lists all of them."
    assert batch_object(session, batch)["request_counts"] == {"total": 150, "completed": 0, "failed": 150}


def test_too_many_lines_fail_the_batch_before_anything_ran(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, b"\n\n".join(line(f"q{i}") for i in range(11)))

    take_in(session, batch, Settings(lines_max=10), lines=3)

    assert reasons_of(batch)[0]["code"] == "too_many_lines"
    assert "more than 10 lines; split it" in reasons_of(batch)[0]["message"]
    assert rows_of(session, batch) == []


def test_as_many_lines_as_are_allowed_are_fine(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, b"\n\n".join(line(f"q{i}") for i in range(10)))

    take_in(session, batch, Settings(lines_max=10), lines=3)

    assert batch.state == BatchState.IN_PROGRESS


def test_a_line_too_long_is_refused_and_the_next_one_read(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, line("a", user="x" * 3_000_000) + b"\n" + line("b"))

    take_in(session, batch, Settings(line_bytes_max=1000))

    [error] = errors_of(session, batch)
    assert (error["line"], error["code"]) == (1, "line_too_long")
    assert "longer than 1000 bytes" in error["message"]
    assert [custom_id for _, custom_id, *_ in rows_of(session, batch)] == [None, "b"]


def test_a_batch_that_is_no_longer_validating_is_left_alone(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, line("a"))
    batch.state = BatchState.CANCELLED
    session.flush()

    assert advance_intake(session, batch.id, SETTINGS, NOW)

    assert rows_of(session, batch) == []
    assert batch.state == BatchState.CANCELLED


LINES = st.lists(
    st.sampled_from(
        [
            line("a"),
            line("b"),
            line("c", n=2),
            b"nope",
            b"",
            b" \r",
            line("d") + b"\r",
            b"\xff",
            line("x", user="y" * 700),
        ]
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    lines=LINES, steps=st.lists(st.integers(1, 5), min_size=1, max_size=12), crashes=st.lists(st.booleans(), max_size=9)
)
def test_reading_in_any_steps_with_crashes_between_gives_the_same_rows(
    lines: list[bytes], steps: list[int], crashes: list[bool]
) -> None:
    limits = Settings(line_bytes_max=600)
    with new_sessions() as sessions:
        with sessions.begin() as session:
            tenant = add_tenant(session)
            whole, stepwise = (open_batch(session, tenant, b"\n".join(lines)) for _ in range(2))
        with sessions.begin() as session:
            take_in(session, session.get_one(Batch, whole.id), limits)
        finished, step = False, 0
        while not finished:
            with sessions() as session:
                finished = advance_intake(session, stepwise.id, limits, NOW, steps[step % len(steps)])
                if crashes[step : step + 1] == [True]:
                    session.rollback()
                    finished = False
                session.commit()
                step += 1

        with sessions() as session:
            first, second = session.get_one(Batch, whole.id), session.get_one(Batch, stepwise.id)
            assert rows_of(session, second) == rows_of(session, first)
            assert second.state == first.state
            assert [r["code"] for r in json.loads(second.errors_json or '{"data":[]}')["data"]] == [
                r["code"] for r in json.loads(first.errors_json or '{"data":[]}')["data"]
            ]


def test_memory_does_not_grow_with_the_file(session: Session, tenant: Tenant) -> None:
    def peak_of(lines: int) -> int:
        content = b"\n".join(line(f"q{i}", user="x" * 1000) for i in range(lines))
        batch = open_batch(session, tenant, content)
        del content
        session.commit()
        tracemalloc.start()
        while not advance_intake(session, batch.id, SETTINGS, NOW, lines=200):
            session.commit()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    warm, small, large = peak_of(1000), peak_of(1000), peak_of(10_000)

    assert warm
    assert large < 1.3 * small


def test_the_same_idempotency_key_returns_the_same_batch(session: Session, tenant: Tenant) -> None:
    file = store_upload(session, tenant.id, "a", "batch", [line()], bytes_max=10**6, now=NOW)
    request = {"input_file_id": file.id, "endpoint": ENDPOINT, "metadata": {"a": "1"}, "idempotency_key": "k"}

    first = create_batch(session, tenant.id, now=NOW, **request)  # type: ignore[arg-type]
    again = create_batch(session, tenant.id, now=NOW + timedelta(hours=1), **request)  # type: ignore[arg-type]

    assert again.id == first.id
    assert session.scalar(select(func.count()).select_from(Batch)) == 1
    assert session.scalar(select(func.count()).select_from(File)) == 3


def test_another_request_under_the_same_idempotency_key_is_a_conflict(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, line(), idempotency_key="k", metadata={"a": "1"})

    with pytest.raises(Conflict, match=f"used for batch {batch.id} with another metadata; use a new key"):
        create_batch(
            session,
            tenant.id,
            input_file_id=batch.input_file_id or "",
            endpoint=ENDPOINT,
            metadata={"a": "2"},
            idempotency_key="k",
            now=NOW,
        )


def test_idempotency_keys_of_two_tenants_do_not_meet(session: Session, tenant: Tenant) -> None:
    ours = open_batch(session, tenant, line(), idempotency_key="k")
    theirs = open_batch(session, add_tenant(session, "other"), line(), idempotency_key="k")

    assert ours.id != theirs.id


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoint": "/v1/embeddings"}, "The endpoint '/v1/embeddings' is not supported; use '/v1/chat/completions'"),
        ({"completion_window": "soon"}, "like '24h' or '7d'"),
        ({"completion_window": "0h"}, "like '24h' or '7d'"),
        ({"completion_window": "31d"}, "up to 30 days"),
        ({"completion_window": "\u0662\u0664h"}, "like '24h' or '7d'"),
        ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata has 17 pairs; 16 are allowed"),
        ({"metadata": {"k" * 65: "v"}}, "must be text of 1 to 64 characters"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k must be text of at most 512 characters"),
        ({"metadata": {"k": 5}}, "metadata.k must be text"),
        ({"metadata": {"strategy": "guess"}}, "Metadata.strategy 'guess' is not one of"),
        ({"idempotency_key": ""}, "idempotency key must be 1 to 255 printable characters"),
        ({"idempotency_key": "a\0"}, "idempotency key must be 1 to 255 printable characters"),
    ],
)
def test_a_wrong_batch_is_refused_with_what_is_wrong(
    session: Session, tenant: Tenant, options: dict[str, Any], says: str
) -> None:
    file = store_upload(session, tenant.id, "a", "batch", [line()], bytes_max=10**6, now=NOW)

    with pytest.raises(InvalidRequest) as caught:
        create_batch(session, tenant.id, now=NOW, **({"input_file_id": file.id, "endpoint": ENDPOINT} | options))

    assert says in caught.value.message


def test_a_batch_of_another_tenants_file_cannot_be_made(session: Session, tenant: Tenant) -> None:
    file = store_upload(session, tenant.id, "a", "batch", [line()], bytes_max=10**6, now=NOW)

    with pytest.raises(NotFound, match="There is no file"):
        create_batch(session, add_tenant(session, "other").id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)


def test_an_output_file_is_no_input_file(session: Session, tenant: Tenant) -> None:
    output = open_batch(session, tenant, line()).output_file_id or ""

    with pytest.raises(InvalidRequest, match="has purpose 'batch_output'; upload one with purpose 'batch'"):
        create_batch(session, tenant.id, input_file_id=output, endpoint=ENDPOINT, now=NOW)


def test_a_batchs_window_and_cost_limit_are_kept(session: Session, tenant: Tenant) -> None:
    batch = open_batch(
        session, tenant, line(), completion_window="7d", cost_max_nanousd=500, metadata={"cost_max_usd": "0.5"}
    )

    assert batch.expires_at == NOW + timedelta(days=7)
    assert batch.limit_nanousd == 500
    assert batch.state == BatchState.VALIDATING


def test_a_batchs_metadata_speaks_for_its_lines(session: Session, tenant: Tenant) -> None:
    metadata = {"strategy": "direct", "task": "sums", "cost_max_usd": "0.5", "team": "red"}
    batch = take_in(session, open_batch(session, tenant, line("a"), metadata=metadata))

    [query] = session.scalars(select(QueryRow).where(QueryRow.batch_id == batch.id))

    assert (query.strategy, query.task, query.limit_nanousd) == ("direct", "sums", None)
    assert batch_object(session, batch)["metadata"] == metadata


def test_an_interactive_query_waits_at_once_and_before_batches(session: Session, tenant: Tenant) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}

    query_id = create_interactive(session, tenant.id, body, now=NOW)

    query = session.get_one(QueryRow, query_id)
    batch = session.get_one(Batch, query.batch_id)
    assert (query.state, batch.state, batch.interactive) == (QueryState.QUEUED, BatchState.IN_PROGRESS, True)
    assert query.priority > add_query(session, add_batch(session, tenant)).priority
    assert query.line == 1


def test_an_interactive_query_on_a_model_without_a_price_is_refused(session: Session, tenant: Tenant) -> None:
    session.execute(delete(PriceRow))

    with pytest.raises(ModelUnpriced, match="allotd price set fake"):
        create_interactive(session, tenant.id, {"model": MODEL, "messages": [{"role": "user", "content": ""}]}, now=NOW)


@dataclass(frozen=True, slots=True)
class Told:
    """Believes what it was told of every query."""

    belief: Prediction
    version: str = "told"

    def predict(self, queries: Sequence[Query], _arms: Sequence[Arm]) -> list[Prediction]:
        return [self.belief] * len(queries)


def test_a_dry_run_says_costs_and_bad_lines_and_writes_nothing(session: Session, tenant: Tenant) -> None:
    content = b"\n".join([line("a"), line("b", allotd={"samples_max": 5}), line("a"), b"nope"])

    run = dry_run(session, [content[:9], content[9:]], SETTINGS, tenant.id, NOW, FixedPriors())

    assert (run.lines, run.runnable) == (4, 2)
    assert [(bad.line, bad.code) for bad in run.bad] == [(3, "duplicate_custom_id"), (4, "invalid_json")]
    assert 0 < run.low_nanousd < run.expected_nanousd < run.worst_nanousd
    assert not session.new
    assert session.scalar(select(func.count()).select_from(QueryRow)) == 0


def test_a_dry_run_counts_a_lines_own_cost_limit(session: Session, tenant: Tenant) -> None:
    run = dry_run(session, [line("a", allotd={"cost_max_usd": "0.00000001"})], SETTINGS, tenant.id, NOW, FixedPriors())

    assert run.low_nanousd == run.worst_nanousd == 10


def test_a_dry_run_with_one_sample_each_costs_less(session: Session, tenant: Tenant) -> None:
    content = line("a", allotd={"samples_max": 8})

    voted = dry_run(session, [content], SETTINGS, tenant.id, NOW, FixedPriors(), strategy="self_consistency")
    single = dry_run(session, [content], SETTINGS, tenant.id, NOW, FixedPriors(), strategy="direct")

    assert single.worst_nanousd < voted.worst_nanousd


@pytest.mark.parametrize(
    ("content", "limits", "kind", "says"),
    [
        (b"", {}, InvalidRequest, "has no lines"),
        ("{}".encode("utf-16"), {}, InvalidRequest, "UTF-16"),
        (b"{}\n" * 11, {"lines_max": 10}, TooLarge, "more than 10 lines"),
        (b"{}\n" * 11, {"file_bytes_max": 30}, TooLarge, "larger than 30 bytes"),
    ],
)
def test_a_dry_run_refuses_what_would_fail_as_a_whole(
    session: Session, tenant: Tenant, content: bytes, limits: dict[str, int], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        dry_run(session, [content], Settings(**limits), tenant.id, NOW, FixedPriors())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("over", "outcome"), [(BatchState.CANCELLING, QueryState.CANCELLED), (BatchState.FINALIZING, QueryState.EXPIRED)]
)
@pytest.mark.parametrize("lines_read", [0, 2])
def test_every_line_of_a_batch_called_off_while_it_was_read_is_accounted_for(
    session: Session, tenant: Tenant, over: BatchState, outcome: QueryState, lines_read: int
) -> None:
    batch = open_batch(session, tenant, b"\n".join([*(line(f"q{i}") for i in range(5)), b"no JSON", b"", b" "]))
    if lines_read:
        advance_intake(session, batch.id, SETTINGS, NOW, lines=lines_read)
    batch.state, batch.expired_at = over, NOW if over is BatchState.FINALIZING else None
    session.flush()
    call_off(session, batch, outcome, NOW)

    early = finalize(session, batch, NOW)
    take_in(session, batch, lines=1)
    late = finalize(session, batch, NOW)

    assert (early, late) == (False, True)
    assert Counter(row[2] for row in rows_of(session, batch)) == {outcome: 5, QueryState.FAILED: 1}
    assert batch_object(session, batch)["request_counts"] == {"total": 6, "completed": 0, "failed": 6}


def test_lines_read_after_a_cancel_do_not_blame_a_model_that_is_away(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, line("a", model="not-there-yet"))
    batch.state = BatchState.CANCELLING
    session.flush()

    take_in(session, batch)

    assert [row[2:] for row in rows_of(session, batch)] == [(QueryState.CANCELLED, None, None)]


def test_the_file_of_a_batch_called_off_is_kept_until_it_is_read(session: Session, tenant: Tenant) -> None:
    batch = open_batch(session, tenant, line())
    batch.state = BatchState.CANCELLING
    session.flush()
    file_id = str(batch.input_file_id)

    with pytest.raises(Conflict):
        delete_file(session, tenant.id, file_id, NOW)

    take_in(session, batch)
    delete_file(session, tenant.id, file_id, NOW)


def test_a_dry_run_expects_what_is_believed_of_the_queries_and_not_half_of_their_samples(
    session: Session, tenant: Tenant
) -> None:
    content = line("a", allotd={"verifier": "numeric", "reference": "1", "samples_max": 8})
    sure, hopeless = (
        Told(Prediction(alpha=alpha, beta=beta, tokens_p50=20, tokens_p90=30, tokens_mean=20.0, version="told"))
        for alpha, beta in ((99.0, 1.0), (1.0, 99.0))
    )

    easy, hard = (dry_run(session, [content], SETTINGS, tenant.id, NOW, belief) for belief in (sure, hopeless))

    assert easy.low_nanousd == hard.low_nanousd
    assert easy.expected_nanousd < 1.1 * easy.low_nanousd
    assert hard.low_nanousd * 2 < hard.expected_nanousd < hard.worst_nanousd == easy.worst_nanousd


def test_a_dry_run_shares_a_budget_out_as_the_rule_of_its_lines_will(session: Session, tenant: Tenant) -> None:
    asked = {"verifier": "numeric", "reference": "1", "samples_max": 8}
    content = b"\n".join(line(str(i), allotd=asked) for i in range(8))
    hard = Told(Prediction(alpha=2.0, beta=8.0, tokens_p50=20, tokens_p90=30, tokens_mean=20.0, version="told"))

    shared, whole = (
        dry_run(session, [content], SETTINGS, tenant.id, NOW, hard, strategy=strategy)
        for strategy in ("damani@2", "best_of_n")
    )

    assert shared.worst_nanousd < whole.worst_nanousd
    assert shared.expected_nanousd < whole.expected_nanousd


def test_a_dry_run_says_what_other_amounts_would_reach(session: Session, tenant: Tenant) -> None:
    content = b"\n".join(line(str(i), allotd={"verifier": "numeric", "reference": "1"}) for i in range(8))

    one_each = dry_run(session, [content], SETTINGS, tenant.id, NOW, FixedPriors()).low_nanousd
    run = dry_run(session, [content], SETTINGS, tenant.id, NOW, FixedPriors(), what_if_nanousd=(one_each // 2, 10**9))

    little, plenty = run.reaches
    assert (little.abandoned, plenty.abandoned) == (4, 0)
    assert little.used_nanousd <= one_each // 2 < plenty.used_nanousd
    assert little.right < plenty.right <= 8
