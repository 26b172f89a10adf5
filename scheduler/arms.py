"""Queries that several models may answer: which may still be asked, and what was drawn of each so far."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, case, func, select
from sqlalchemy.orm import Session

from models.tables import QueryRow, SampleRow, Wave
from scheduler.states import USABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one model has done with a query: usable samples, and whether one of them was accepted."""

    samples: int
    is_right: bool


NOT_YET = Asked(samples=0, is_right=False)


def models_of(row: QueryRow | Any) -> tuple[str, ...]:
    """The models that may answer a query, the one whose turn it is first."""
    named: list[str] = json.loads(row.models_json) if row.models_json else []
    return (str(row.model), *(model for model in named if model != row.model))


def asked_so_far(session: Session, rows: Sequence[QueryRow]) -> dict[int, dict[str, Asked]]:
    """By query and model, what was drawn of those rows that several models may answer."""
    ids = [row.id for row in rows if row.models_json is not None and row.samples_drawn > 0]
    found: dict[int, dict[str, Asked]] = defaultdict(dict)
    if not ids:
        return found
    accepted = func.max(case((SampleRow.correct.is_(True), 1), else_=0)).cast(Integer)
    drawn = (
        select(SampleRow.query_id, Wave.model, func.count().label("samples"), accepted.label("accepted"))
        .join(Wave, Wave.id == SampleRow.wave_id)
        .where(SampleRow.query_id.in_(ids), SampleRow.finish_reason.in_(USABLE))
        .group_by(SampleRow.query_id, Wave.model)
    )
    for each in session.execute(drawn):
        found[each.query_id][each.model] = Asked(samples=each.samples, is_right=bool(each.accepted))
    return found


def open_models(row: QueryRow | Any, asked: Mapping[str, Asked]) -> tuple[str, ...]:
    """The models that may be asked next: all of them, until one has begun what only it can finish.

    Samples of one model are no votes for the answers of another, and an accepted sample has only to be looked at.
    """
    models = models_of(row)
    accepted = tuple(model for model in models if asked.get(model, NOT_YET).is_right)
    if accepted:
        return accepted[:1]
    can_judge = row.verifier is not None and row.reference is not None
    return models if can_judge or not row.samples_drawn else models[:1]
