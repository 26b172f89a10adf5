"""Batches whose own limit has money left, which waves hold just now: their next lines stay queued until it is back.

Planned, such a line would keep a worker's place and wait there; refused, it would end though its batch could pay it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, QueryRow
from scheduler.drafts import Draft
from scheduler.states import AttemptState

Shortage = Mapping[str, int]
"""By batch, the nano-dollars that its next line needs."""


@dataclass(slots=True)
class Room:
    """What a batch's limit leaves: with all that is held, and without; `coming` queries will hold some soon."""

    whole_nanousd: int
    left_nanousd: int
    coming: int = 0

    def is_short_of(self, nanousd: int) -> bool:
        """Whether that much is there, and held."""
        return self.left_nanousd - self.coming * nanousd < nanousd <= self.whole_nanousd


def affordable(session: Session, drafts: Sequence[Draft]) -> tuple[list[Draft], Shortage]:
    """The drafts without those that have to wait for money of their batch, and which batches are short of how much.

    What a batch cannot pay even with all that is held stays among them: it ends at once.
    """
    rooms = _rooms(session, {draft.batch_id for draft in drafts})
    kept, short = [], dict[str, int]()
    for draft in drafts:
        room = rooms.get(draft.batch_id)
        if room is None or draft.abandoned_because is not None:
            kept.append(draft)
        elif room.is_short_of(draft.need_nanousd):
            short[draft.batch_id] = min(draft.need_nanousd, short.get(draft.batch_id, draft.need_nanousd))
        else:
            room.left_nanousd -= draft.need_nanousd
            kept.append(draft)
    return kept, short


def still_short(session: Session, short: Shortage) -> Shortage:
    """Those that still are."""
    rooms = _rooms(session, short)
    return {
        batch_id: need for batch_id, need in short.items() if batch_id in rooms and rooms[batch_id].is_short_of(need)
    }


def is_not_short(short: Shortage) -> ColumnElement[bool]:
    """Whether a query is of none of these batches."""
    return QueryRow.batch_id.not_in(list(short)) if short else true()


def _rooms(session: Session, batch_ids: Collection[str]) -> dict[str, Room]:
    if not batch_ids:
        return {}
    rooms = {
        row.id: Room(whole_nanousd=row.limit - row.spent, left_nanousd=row.limit - row.spent - row.held)
        for row in session.execute(
            select(
                Batch.id,
                Batch.limit_nanousd.label("limit"),
                Batch.spent_nanousd.label("spent"),
                Batch.held_nanousd.label("held"),
            ).where(Batch.id.in_(batch_ids), Batch.limit_nanousd.is_not(None))
        )
    }
    if not rooms:
        return {}
    coming = (
        select(QueryRow.batch_id, func.count())
        .join_from(Attempt, QueryRow, QueryRow.id == Attempt.query_id)
        .where(Attempt.state == AttemptState.DISPATCHED, QueryRow.batch_id.in_(rooms))
        .group_by(QueryRow.batch_id)
    )
    for batch_id, count in session.execute(coming):
        rooms[batch_id].coming = count
    return rooms
