"""What is read of a batch: its object, its growing output and error files, each answer, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from models.tables import Batch, File, PlanRow, QueryRow, SampleRow, Tenant
from scheduler.batch_view import batch_object, batch_objects
from scheduler.finalization import PAGE, error_line, finalize, output_chunks, response_body
from scheduler.states import QUERY_FINAL, QUERY_OPEN, BatchState, QueryState
from tests.factories import NOW, add_batch, add_query, add_tenant, new_sessions
from tests.unit.answering import PROMPT_TOKENS, TOKENS, answer, wave_nanousd

LATER = NOW + timedelta(seconds=100)


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


@pytest.fixture
def tenant(session: Session) -> Tenant:
    return add_tenant(session)


@pytest.fixture
def batch(session: Session, tenant: Tenant) -> Batch:
    return add_batch(session, tenant, in_progress_at=NOW)


def output(session: Session, batch: Batch, page: int = PAGE) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(output_chunks(session, batch, "output", page)).splitlines()]


def errors(session: Session, batch: Batch, page: int = PAGE) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(output_chunks(session, batch, "error", page)).splitlines()]


def ended(session: Session, batch: Batch, state: QueryState, **values: Any) -> QueryRow:
    return add_query(session, batch, state=state, finished_at=NOW, **values)


@contextmanager
def statements_of(session: Session) -> Iterator[list[str]]:
    """Every SQL statement that is sent meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def test_an_answer_is_a_chat_completion_that_counts_every_samples_tokens(session: Session, batch: Batch) -> None:
    query = answer(session, batch, "21", "22", "21", at=NOW, seconds=2.5, correct=True)

    body = response_body(session, query)

    assert body["object"] == "chat.completion"
    assert body["model"] == query.model
    assert body["created"] == int((NOW + timedelta(seconds=2.5)).timestamp())
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "21"}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"] == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 3 * TOKENS,
        "total_tokens": PROMPT_TOKENS + 3 * TOKENS,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }


def test_an_answer_says_what_allotd_did_for_it(session: Session, batch: Batch) -> None:
    query = answer(session, batch, "21", "22", at=NOW, seconds=2.5, correct=True)

    assert response_body(session, query)["allotd"] == {
        "strategy": "self_consistency",
        "samples": 2,
        "stop_reason": "test",
        "cost_usd": f"{wave_nanousd(2) / 1e9:.9f}",
        "confidence": None,
        "predicted_difficulty": 0.5,
        "predictor_version": "test",
        "latency_s": 2.5,
        "outcome": "answered",
        "correct": True,
    }


def test_an_answers_plan_is_the_last_one(session: Session, batch: Batch) -> None:
    query = answer(session, batch, "21")
    [first] = session.query(PlanRow).where(PlanRow.query_id == query.id)
    values = {c.name: getattr(first, c.name) for c in PlanRow.__table__.columns if c.name not in {"id", "alpha"}}
    session.add(PlanRow(alpha=3.0, **values))
    session.flush()

    assert response_body(session, query)["allotd"]["predicted_difficulty"] == 0.25


def test_a_message_with_tool_calls_is_returned_whole(session: Session, batch: Batch) -> None:
    query = answer(session, batch, "")
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    session.execute(
        update(SampleRow)
        .where(SampleRow.id == query.chosen_sample_id)
        .values(message_json=json.dumps(message), finish_reason="tool_calls")
    )

    [choice] = response_body(session, query)["choices"]

    assert choice["message"] == message
    assert choice["finish_reason"] == "tool_calls"


def test_an_output_line_has_openais_shape(session: Session, batch: Batch) -> None:
    query = answer(session, batch, "21")

    [line] = output(session, batch)

    assert line["custom_id"] == query.custom_id
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    assert line["response"]["body"] == response_body(session, query)
    assert line["id"].startswith("batch_req_")
    assert len(line["id"]) == len("batch_req_") + 24
    assert errors(session, batch) == []


def test_a_budget_stop_with_an_answer_is_output_and_without_one_an_error(session: Session, batch: Batch) -> None:
    stopped = answer(session, batch, "21", state=QueryState.BUDGET_STOPPED)
    empty = ended(session, batch, QueryState.BUDGET_STOPPED, because="batch")

    [line], [error] = output(session, batch), errors(session, batch)

    assert line["custom_id"] == stopped.custom_id
    assert line["response"]["body"]["allotd"]["outcome"] == "budget_stopped"
    assert error["custom_id"] == empty.custom_id
    assert error["error"]["code"] == "budget_stopped"
    assert error["error"]["message"].endswith(": batch.")


def test_an_expired_query_that_had_paid_for_an_answer_is_output(session: Session, batch: Batch) -> None:
    late = answer(session, batch, "21", state=QueryState.EXPIRED)

    [line] = output(session, batch)

    assert line["custom_id"] == late.custom_id
    assert line["response"]["body"]["allotd"]["outcome"] == "expired"
    assert errors(session, batch) == []


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (QueryState.EXPIRED, "batch_expired"),
        (QueryState.CANCELLED, "batch_cancelled"),
        (QueryState.BUDGET_STOPPED, "budget_stopped"),
        (QueryState.ABANDONED, "abandoned"),
        (QueryState.FAILED, "internal_error"),
    ],
)
def test_every_outcome_without_an_answer_has_a_code_of_its_own(
    session: Session, batch: Batch, state: QueryState, code: str
) -> None:
    query = ended(session, batch, state)

    line = error_line(session, query)

    assert line["response"] is None
    assert line["custom_id"] == query.custom_id
    assert line["error"]["code"] == code
    assert line["error"]["message"].endswith(".")
    assert line["error"]["line"] == query.line
    assert errors(session, batch) == [line]


def test_a_failed_query_says_what_failed(session: Session, batch: Batch) -> None:
    told = {"code": "engine_rejected", "message": "The server refused the request: no such tool."}
    query = ended(session, batch, QueryState.FAILED, error_json=json.dumps(told))

    error = error_line(session, query)["error"]

    assert (error["code"], error["message"]) == (told["code"], told["message"])


def test_a_line_without_a_usable_custom_id_shows_what_it_had(session: Session, batch: Batch) -> None:
    told = {"code": "invalid_custom_id", "message": "Line 4: custom_id must be text.", "custom_id": "17", "param": "x"}
    query = ended(session, batch, QueryState.FAILED, error_json=json.dumps(told))
    query.custom_id = None

    assert error_line(session, query)["custom_id"] == "17"


OUTCOMES = st.lists(st.tuples(st.sampled_from(sorted(QueryState)), st.integers(0, 3)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(outcomes=OUTCOMES, page=st.integers(1, 5))
def test_each_ended_query_is_on_exactly_one_line_in_the_order_of_ending(
    outcomes: list[tuple[QueryState, int]], page: int
) -> None:
    with new_sessions() as sessions, sessions() as session:
        batch = add_batch(session, add_tenant(session))
        rows = [
            add_query(
                session, batch, state=state, finished_at=NOW + timedelta(seconds=at) if state in QUERY_FINAL else None
            )
            for state, at in outcomes
        ]

        answers, failures = output(session, batch, page), errors(session, batch, page)

        def in_order(*states: QueryState) -> list[str | None]:
            chosen = [row for row in rows if row.state in states]
            return [row.custom_id for row in sorted(chosen, key=lambda row: (row.finished_at, row.id))]

        assert [line["custom_id"] for line in answers] == in_order(QueryState.ANSWERED)
        assert [line["custom_id"] for line in failures] == in_order(*(QUERY_FINAL - {QueryState.ANSWERED}))
        counts = batch_object(session, batch)["request_counts"]
        assert counts["completed"] == len(answers)
        assert counts["failed"] == len(failures)
        assert counts["total"] - len(answers) - len(failures) == sum(row.state in QUERY_OPEN for row in rows)


def test_a_growing_output_file_only_grows_at_its_end(session: Session, batch: Batch) -> None:
    answer(session, batch, "1", at=NOW, seconds=5)
    before = b"".join(output_chunks(session, batch, "output"))

    answer(session, batch, "2", at=NOW, seconds=9)

    assert b"".join(output_chunks(session, batch, "output")).startswith(before)


def test_a_page_costs_the_same_statements_however_many_lines_it_has(session: Session, batch: Batch) -> None:
    for _ in range(3):
        answer(session, batch, "21")
    with statements_of(session) as few:
        output(session, batch)
    for _ in range(30):
        answer(session, batch, "21")

    with statements_of(session) as many:
        output(session, batch)

    assert len(few) == len(many) <= 5
    assert PAGE > 33


@pytest.mark.parametrize(
    ("state", "values", "end", "instant"),
    [
        (BatchState.IN_PROGRESS, {}, BatchState.COMPLETED, "completed_at"),
        (BatchState.FINALIZING, {}, BatchState.COMPLETED, "completed_at"),
        (BatchState.FINALIZING, {"expired_at": LATER}, BatchState.EXPIRED, "expired_at"),
        (BatchState.CANCELLING, {}, BatchState.CANCELLED, "cancelled_at"),
        (BatchState.CANCELLING, {"expired_at": None}, BatchState.CANCELLED, "cancelled_at"),
    ],
)
def test_a_batch_ends_when_its_last_query_has_ended(
    session: Session, tenant: Tenant, state: BatchState, values: dict[str, Any], end: BatchState, instant: str
) -> None:
    batch = add_batch(session, tenant, state=state, **values)
    query = add_query(session, batch, state=QueryState.RUNNING)

    was_early = finalize(session, batch, LATER)
    query.state = QueryState.ANSWERED
    session.flush()
    was_right = finalize(session, batch, LATER)

    assert (was_early, was_right) == (False, True)
    session.refresh(batch)
    assert batch.state == end
    assert getattr(batch, instant) == LATER
    assert not finalize(session, batch, LATER)


@pytest.mark.parametrize("state", sorted(set(QueryState) & QUERY_OPEN))
def test_any_open_query_keeps_its_batch_open(session: Session, batch: Batch, state: QueryState) -> None:
    add_query(session, batch, state=state)

    assert not finalize(session, batch, LATER)


@pytest.mark.parametrize("state", [BatchState.VALIDATING, BatchState.FAILED, BatchState.COMPLETED])
def test_a_batch_that_has_not_begun_or_has_ended_is_left_alone(
    session: Session, tenant: Tenant, state: BatchState
) -> None:
    batch = add_batch(session, tenant, state=state)

    assert not finalize(session, batch, LATER)


def test_a_batch_says_how_far_it_is_and_what_it_costs(session: Session, batch: Batch) -> None:
    answer(session, batch, "21", "22", at=NOW, seconds=2)
    answer(session, batch, "21", at=NOW, seconds=4)
    ended(session, batch, QueryState.FAILED, model=None)
    for _ in range(3):
        add_query(session, batch)
    add_query(session, batch, state=QueryState.PARKED, parked_because="cap cap_1 (day)")
    session.refresh(batch)

    shown = batch_object(session, batch)

    cost = wave_nanousd(2) + wave_nanousd(1)
    assert shown["request_counts"] == {"total": 7, "completed": 2, "failed": 1}
    assert shown["usage"]["input_tokens"] == 2 * PROMPT_TOKENS
    assert shown["usage"]["output_tokens"] == 3 * TOKENS
    assert shown["usage"]["total_tokens"] == 2 * PROMPT_TOKENS + 3 * TOKENS
    assert shown["model"] == "fake"
    assert shown["allotd"] == {
        "tenant": "acme",
        "states": {"answered": 2, "failed": 1, "queued": 3, "parked": 1},
        "spent_nanousd": cost,
        "spent_usd": f"{cost / 1e9:.9f}",
        "held_nanousd": 0,
        "held_usd": "0.00",
        "limit_nanousd": None,
        "limit_usd": None,
        "parked": [{"because": "cap cap_1 (day)", "queries": 1}],
        "samples": 3,
        "queries_per_s": 0.5,
        "eta_s": 8.0,
    }


def test_a_batch_has_openais_fields_in_seconds_since_1970(session: Session, tenant: Tenant) -> None:
    batch = add_batch(session, tenant, metadata_json='{"a": "1"}', errors_json='{"object": "list", "data": []}')

    shown = batch_object(session, batch)

    assert shown["object"] == "batch"
    assert shown["status"] == "in_progress"
    assert shown["created_at"] == int(NOW.timestamp())
    assert shown["completed_at"] is None
    assert shown["metadata"] == {"a": "1"}
    assert shown["errors"] == {"object": "list", "data": []}
    assert shown["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert shown["allotd"]["eta_s"] == 0


def test_many_batches_are_counted_and_named_in_two_statements(session: Session, tenant: Tenant) -> None:
    batches = [add_batch(session, tenant) for _ in range(5)]
    for i, batch in enumerate(batches):
        for _ in range(i):
            add_query(session, batch)

    with statements_of(session) as seen:
        shown = batch_objects(session, batches)

    assert [each["request_counts"]["total"] for each in shown] == [0, 1, 2, 3, 4]
    assert len(seen) == 2


def test_a_batch_that_is_over_shows_only_files_that_hold_lines(session: Session, batch: Batch) -> None:
    batch.output_file_id, batch.error_file_id = "file-output", "file-error"

    def shown() -> tuple[str | None, str | None]:
        told = batch_object(session, batch)
        return told["output_file_id"], told["error_file_id"]

    before = shown()
    batch.state = BatchState.COMPLETED
    empty = shown()
    batch.state = BatchState.IN_PROGRESS
    answer(session, batch, "21")
    batch.state = BatchState.COMPLETED
    answered = shown()
    ended(session, batch, QueryState.FAILED)

    assert [before, empty, answered, shown()] == [
        ("file-output", "file-error"),
        (None, None),
        ("file-output", None),
        ("file-output", "file-error"),
    ]


def test_output_files_live_as_long_after_the_batchs_end_as_was_asked(session: Session, batch: Batch) -> None:
    files = [
        File(
            id=f"file-{kind}",
            tenant_id=batch.tenant_id,
            purpose="batch_output",
            filename=kind,
            bytes_total=0,
            created_at=NOW,
        )
        for kind in ("output", "error")
    ]
    session.add_all(files)
    batch.output_file_id, batch.error_file_id = "file-output", "file-error"
    batch.output_expires_after_s = 3600
    session.flush()

    assert finalize(session, batch, LATER)

    session.expire_all()
    assert [file.expires_at for file in files] == [LATER + timedelta(hours=1)] * 2
