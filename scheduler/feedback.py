"""What somebody says later about an answer: labels, of which a query's newest counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from models.tables import Label, QueryRow, SampleRow
from scheduler.errors import Conflict, InvalidRequest, NotFound
from scheduler.settlement import as_sample
from scheduler.states import QUERY_OPEN
from scheduler.types import Verdict, VerifierSpec
from scheduler.verification import check_spec, label

SOURCE = "feedback"
LOOKED_UP_AT_ONCE = 500
"""Ids per statement: SQLite takes 32,766 parameters at most, PostgreSQL 65,535."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewLabel:
    """One answer's label: `correct` says it outright, else the answer is compared with `reference`."""

    batch_id: str
    custom_id: str
    correct: bool | None = None
    reference: str | None = None
    comment: str | None = None

    @property
    def name(self) -> str:
        """How a message names it."""
        return f"'{self.custom_id}' of {self.batch_id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A label whose query was found and whose word is known."""

    query_id: int
    correct: bool
    reference: str | None
    comment: str | None


def judge_labels(session: Session, tenant_id: str | None, labels: Sequence[NewLabel]) -> list[Judged]:
    """Find the labelled queries and compare references with answers, all of them or none; changes nothing.

    A part of its own, because comparing takes time that no write transaction should. An admin names no tenant. A
    reference is compared as the query's own verifier does, or exactly where it has none.

    Raises:
        InvalidRequest: a label says nothing, or its reference cannot be judged by.
        NotFound: there is no such line, or it is another tenant's.
        Conflict: the query has not ended, or ended without an answer.
    """
    rows = _queries(session, tenant_id, labels)
    chosen = _chosen_samples(session, list(rows.values()))
    judged = []
    for entry in labels:
        row = rows[entry.batch_id, entry.custom_id]
        correct = _judge(entry, row, chosen.get(row.id))
        judged.append(Judged(query_id=row.id, correct=correct, reference=entry.reference, comment=entry.comment))
    return judged


def record_labels(session: Session, judged: Sequence[Judged], now: datetime) -> int:
    """Keep labels and count them from now on; returns how many."""
    if not judged:
        return 0
    session.execute(
        insert(Label),
        [
            {
                "query_id": entry.query_id,
                "source": SOURCE,
                "correct": entry.correct,
                "reference": entry.reference,
                "comment": entry.comment,
                "created_at": now,
            }
            for entry in judged
        ],
    )
    newest = {entry.query_id: entry.correct for entry in judged}
    # Sorted, so that two requests about the same queries wait for one another instead of both for ever.
    session.execute(update(QueryRow), [{"id": query_id, "correct": newest[query_id]} for query_id in sorted(newest)])
    return len(judged)


def _queries(session: Session, tenant_id: str | None, labels: Sequence[NewLabel]) -> dict[tuple[str, str], QueryRow]:
    wanted: dict[str, set[str]] = defaultdict(set)
    for entry in labels:
        wanted[entry.batch_id].add(entry.custom_id)
    found: dict[tuple[str, str], QueryRow] = {}
    for batch_id, custom_ids in wanted.items():
        ordered = sorted(custom_ids)
        for start in range(0, len(ordered), LOOKED_UP_AT_ONCE):
            statement = select(QueryRow).where(
                QueryRow.batch_id == batch_id, QueryRow.custom_id.in_(ordered[start : start + LOOKED_UP_AT_ONCE])
            )
            if tenant_id is not None:
                statement = statement.where(QueryRow.tenant_id == tenant_id)
            found.update({(batch_id, str(row.custom_id)): row for row in session.scalars(statement)})
    for entry in labels:
        if (entry.batch_id, entry.custom_id) not in found:
            raise NotFound(f"There is no line {entry.name}; nothing was recorded.", param="custom_id")
    return found


def _chosen_samples(session: Session, rows: Sequence[QueryRow]) -> dict[int, SampleRow]:
    """The chosen sample of each query that has one, by the query's id."""
    ids = [row.chosen_sample_id for row in rows if row.chosen_sample_id is not None]
    chosen: dict[int, SampleRow] = {}
    for start in range(0, len(ids), LOOKED_UP_AT_ONCE):
        statement = select(SampleRow).where(SampleRow.id.in_(ids[start : start + LOOKED_UP_AT_ONCE]))
        chosen.update({sample.query_id: sample for sample in session.scalars(statement)})
    return chosen


def _judge(entry: NewLabel, row: QueryRow, sample: SampleRow | None) -> bool:
    if entry.correct is None and entry.reference is None:
        raise InvalidRequest(
            f"The label of {entry.name} says nothing; give `correct` (true or false) or a `reference`.",
            param="correct",
        )
    if row.state in QUERY_OPEN:
        raise Conflict(f"Line {entry.name} has not ended yet; label it when it has.", param="custom_id")
    if sample is None:
        raise Conflict(f"Line {entry.name} ended as {row.state} without an answer to label.", param="custom_id")
    if entry.correct is not None:
        return entry.correct
    kind = Verdict(row.verifier) if row.verifier else Verdict.EXACT
    check_spec(kind, entry.reference)
    verdict = label(as_sample(sample), VerifierSpec(kind=kind, reference=entry.reference)).correct
    return bool(verdict)
