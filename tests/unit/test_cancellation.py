"""Cancelling: nothing more begins, what waits ends at once, and whoever parked for money keeps the best it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import Batch, QueryRow, SampleRow
from scheduler.cancellation import cancel_batch, cancel_waiting, stop_parked
from scheduler.errors import Conflict, NotFound
from scheduler.recovery import expire_batches, is_anything_over
from scheduler.states import BATCH_FINAL, BatchState, QueryState
from tests.factories import NOW, add_batch, add_query, add_tenant, new_sessions
from tests.unit.answering import answer


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


@pytest.fixture
def batch(session: Session) -> Batch:
    return add_batch(session, add_tenant(session))


def test_what_waits_is_cancelled_at_once_and_what_runs_is_left_to_its_worker(session: Session, batch: Batch) -> None:
    before = ["queued", "parked", "planned", "running", "answered"]
    rows = [add_query(session, batch, state=state) for state in before]

    cancel_batch(session, batch.tenant_id, batch.id, NOW)
    cancel_waiting(session, batch.id, NOW)

    for row in rows:
        session.refresh(row)
    assert [row.state for row in rows] == ["cancelled", "cancelled", "cancelled", "running", "answered"]
    assert (batch.state, batch.cancelling_at) == (BatchState.CANCELLING, NOW)


def test_cancelling_twice_is_cancelling_once(session: Session, batch: Batch) -> None:
    cancel_batch(session, None, batch.id, NOW)

    again = cancel_batch(session, None, batch.id, NOW.replace(year=2027))

    assert again.cancelling_at == NOW


@pytest.mark.parametrize("state", sorted(BATCH_FINAL))
def test_a_batch_that_is_over_cannot_be_cancelled(session: Session, batch: Batch, state: BatchState) -> None:
    batch.state = state
    session.flush()

    with pytest.raises(Conflict, match=state):
        cancel_batch(session, None, batch.id, NOW)


def test_another_tenants_batch_does_not_exist(session: Session, batch: Batch) -> None:
    with pytest.raises(NotFound):
        cancel_batch(session, add_tenant(session, "other").id, batch.id, NOW)


def test_waiting_queries_of_a_batch_that_goes_on_are_left_alone(session: Session, batch: Batch) -> None:
    row = add_query(session, batch)

    cancel_waiting(session, batch.id, NOW)

    session.refresh(row)
    assert row.state == QueryState.QUEUED


def test_a_parked_query_ends_with_the_answer_most_of_its_samples_gave(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "22", "21", "21", verifier="numeric")
    session.execute(update(SampleRow).values(answer=SampleRow.text))
    row.state, row.parked_because, row.chosen_sample_id = QueryState.PARKED, "cap cap_1 (day)", None
    session.flush()

    stopped = stop_parked(session, row.id, NOW)

    session.refresh(row)
    assert stopped
    assert (row.state, row.because) == (QueryState.BUDGET_STOPPED, "cap cap_1 (day) limit reached")
    assert session.scalars(select(SampleRow.text).where(SampleRow.id == row.chosen_sample_id)).one() == "21"


def test_a_parked_query_without_samples_ends_without_an_answer(session: Session, batch: Batch) -> None:
    row = add_query(session, batch, state=QueryState.PARKED, parked_because="cap cap_1 (day)")

    stop_parked(session, row.id, NOW)

    session.refresh(row)
    assert (row.state, row.chosen_sample_id) == (QueryState.BUDGET_STOPPED, None)


def test_a_query_that_goes_on_again_is_not_stopped(session: Session, batch: Batch) -> None:
    row = add_query(session, batch)

    stopped = stop_parked(session, row.id, NOW)

    assert (stopped, session.get_one(QueryRow, row.id).state) == (False, QueryState.QUEUED)


@pytest.mark.parametrize("before", [QueryState.QUEUED, QueryState.PLANNED])
def test_expiry_keeps_the_best_answer_that_is_paid_for(session: Session, batch: Batch, before: QueryState) -> None:
    row = answer(session, batch, "22", "21", "21", verifier="numeric")
    session.execute(update(SampleRow).values(answer=SampleRow.text))
    row.state, row.chosen_sample_id, row.finished_at = before, None, None
    never_begun = add_query(session, batch)

    expire_batches(session, batch.expires_at)

    session.refresh(row)
    session.refresh(never_begun)
    assert (row.state, row.because) == (QueryState.EXPIRED, "completion window ended; best so far")
    assert session.scalars(select(SampleRow.text).where(SampleRow.id == row.chosen_sample_id)).one() == "21"
    assert (never_begun.state, never_begun.chosen_sample_id) == (QueryState.EXPIRED, None)


@pytest.mark.parametrize("after", [QueryState.QUEUED, QueryState.PARKED])
def test_what_its_worker_gives_back_after_the_window_has_passed_expires_too(
    session: Session, batch: Batch, after: QueryState
) -> None:
    row = add_query(session, batch, state=QueryState.RUNNING)
    expire_batches(session, batch.expires_at)
    before = is_anything_over(session, batch.expires_at)
    row.state = after  # a dead worker's, one that stopped, one handed on to another model

    is_due = is_anything_over(session, batch.expires_at)
    expire_batches(session, batch.expires_at)

    session.refresh(row)
    assert (before, is_due, row.state) == (False, True, QueryState.EXPIRED)
    assert not is_anything_over(session, batch.expires_at)


def test_cancelling_wants_no_answer_of_what_waits(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "21", verifier="numeric")
    row.state, row.chosen_sample_id, row.finished_at = QueryState.QUEUED, None, None
    cancel_batch(session, batch.tenant_id, batch.id, NOW)

    cancel_waiting(session, batch.id, NOW)

    session.refresh(row)
    assert (row.state, row.chosen_sample_id) == (QueryState.CANCELLED, None)
