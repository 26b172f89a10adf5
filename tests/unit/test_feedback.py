"""Labels that come later: the newest counts, references are judged, and nothing is recorded by halves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Batch, Label, QueryRow
from scheduler.errors import Conflict, InvalidRequest, NotFound
from scheduler.feedback import NewLabel, judge_labels, record_labels
from scheduler.states import QueryState
from tests.factories import NOW, add_batch, add_query, add_tenant, new_sessions
from tests.unit.answering import answer


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


@pytest.fixture
def batch(session: Session) -> Batch:
    return add_batch(session, add_tenant(session))


def say(
    session: Session, row: QueryRow, now: datetime = NOW, *, correct: bool | None = None, reference: str | None = None
) -> int:
    """Label one answer as its tenant."""
    label = NewLabel(batch_id=row.batch_id, custom_id=str(row.custom_id), correct=correct, reference=reference)
    accepted = record_labels(session, judge_labels(session, row.tenant_id, [label]), now)
    session.refresh(row)
    return accepted


def test_an_answer_is_right_when_somebody_says_so(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "It is 21.")

    accepted = say(session, row, correct=True)

    assert (accepted, row.correct) == (1, True)


def test_the_newest_label_counts_and_the_older_ones_are_kept(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "It is 21.")
    say(session, row, correct=True)

    say(session, row, NOW + timedelta(hours=1), correct=False)

    assert row.correct is False
    assert session.scalars(select(Label.correct).order_by(Label.id)).all() == [True, False]


@pytest.mark.parametrize(("reference", "is_right"), [("21", True), ("21.0", True), ("22", False)])
def test_a_reference_is_compared_as_the_querys_own_verifier_does(
    session: Session, batch: Batch, reference: str, is_right: bool
) -> None:
    row = answer(session, batch, "So the sum is 21.", verifier="numeric")

    say(session, row, reference=reference)

    assert row.correct is is_right


def test_without_a_verifier_a_reference_is_compared_exactly(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "Paris")

    say(session, row, reference="Paris")

    assert row.correct is True


def test_an_outright_word_goes_before_the_reference(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "21", verifier="numeric")

    say(session, row, correct=False, reference="21")

    assert row.correct is False
    assert session.scalars(select(Label.reference)).one() == "21"


def test_a_label_that_says_nothing_is_refused(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "21")

    with pytest.raises(InvalidRequest, match="says nothing"):
        say(session, row)


def test_another_tenants_answer_cannot_be_labelled(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "21")
    label = NewLabel(batch_id=batch.id, custom_id=str(row.custom_id), correct=True)

    with pytest.raises(NotFound):
        judge_labels(session, add_tenant(session, "other").id, [label])


def test_an_admin_labels_everybodys_answers(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "21")
    label = NewLabel(batch_id=batch.id, custom_id=str(row.custom_id), correct=True)

    accepted = record_labels(session, judge_labels(session, None, [label]), NOW)

    assert accepted == 1


def test_one_unknown_line_refuses_all_labels_and_is_named(session: Session, batch: Batch) -> None:
    row = answer(session, batch, "21")
    labels = [
        NewLabel(batch_id=batch.id, custom_id=custom_id, correct=True) for custom_id in (str(row.custom_id), "nobody")
    ]

    with pytest.raises(NotFound, match="'nobody'"):
        judge_labels(session, batch.tenant_id, labels)

    assert session.scalar(select(func.count()).select_from(Label)) == 0


def test_a_query_that_has_not_ended_has_no_answer_to_label(session: Session, batch: Batch) -> None:
    row = add_query(session, batch)

    with pytest.raises(Conflict, match="not ended"):
        say(session, row, correct=True)


def test_a_query_that_failed_has_no_answer_to_label(session: Session, batch: Batch) -> None:
    row = add_query(session, batch, state=QueryState.FAILED, finished_at=NOW)

    with pytest.raises(Conflict, match="without an answer"):
        say(session, row, correct=True)


def test_more_labels_than_fit_into_one_statement_are_recorded(session: Session, batch: Batch) -> None:
    rows = [answer(session, batch, "21") for _ in range(3)]
    labels = [
        NewLabel(batch_id=batch.id, custom_id=str(rows[number % 3].custom_id), correct=number % 2 == 0)
        for number in range(1201)
    ]

    accepted = record_labels(session, judge_labels(session, batch.tenant_id, labels), NOW)

    assert accepted == session.scalar(select(func.count()).select_from(Label)) == 1201
