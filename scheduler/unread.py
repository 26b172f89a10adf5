"""Which batches ended before their file was read to its end: their lines are still to be accounted for."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from models.tables import Batch, File
from scheduler.states import BatchState, QueryState

ENDS_AS = {BatchState.CANCELLING: QueryState.CANCELLED, BatchState.FINALIZING: QueryState.EXPIRED}
"""What the lines become that are read after their batch was called off."""

_SIZE = select(File.bytes_total).where(File.id == Batch.input_file_id).correlate(Batch).scalar_subquery()
IS_CALLED_OFF_UNREAD: ColumnElement[bool] = and_(
    Batch.state.in_(sorted(ENDS_AS)), Batch.in_progress_at.is_(None), Batch.bytes_read < _SIZE
)
"""For a statement on batches: called off while their file was being read, and not yet read to its end."""


def is_called_off_unread(session: Session, batch_id: str) -> bool:
    """Whether lines of a batch that was called off are still to be read."""
    found = session.scalars(select(Batch.id).where(Batch.id == batch_id, IS_CALLED_OFF_UNREAD)).first()
    return found is not None
