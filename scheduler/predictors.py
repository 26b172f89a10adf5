"""Which predictors there are, and how they move: asked for, judged, promoted, kept out, retired."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import PredictorRow
from scheduler import predictor_files
from scheduler.errors import Conflict, NotFound
from scheduler.predictor_files import PredictorUnusable
from scheduler.states import PredictorState
from scheduler.types import Lessons

REASON_MAX = 1000
_LESSONS = msgspec.json.Decoder(dict[str, Lessons])


def lessons_of(session: Session, versions: Collection[str]) -> dict[str, dict[str, Lessons]]:
    """By version and model, what predictors learned of samples."""
    learned = select(PredictorRow.version, PredictorRow.lessons_json).where(
        PredictorRow.version.in_(versions), PredictorRow.lessons_json.is_not(None)
    )
    return {row.version: _LESSONS.decode(row.lessons_json) for row in session.execute(learned)}


def models_remembered(session: Session) -> frozenset[str]:
    """The models of whose earlier queries the predictor in use remembers what they reached."""
    row = champion(session)
    if row is None or row.unusable_because is not None:
        return frozenset()
    return frozenset(json.loads(row.card_json).get("about", {}).get("remembers", ()))


def list_predictors(session: Session) -> Sequence[PredictorRow]:
    """All of them, newest first."""
    return session.scalars(select(PredictorRow).order_by(PredictorRow.created_at.desc(), PredictorRow.version)).all()


def find_predictor(session: Session, version: str) -> PredictorRow:
    """One of them. Raises NotFound."""
    row = session.get(PredictorRow, version)
    if row is None:
        raise NotFound(f"There is no predictor '{version}'.", param="version")
    return row


def champion(session: Session) -> PredictorRow | None:
    """The promoted one."""
    return session.scalars(
        select(PredictorRow)
        .where(PredictorRow.state == PredictorState.CHAMPION)
        .order_by(PredictorRow.promoted_at.desc())
        .limit(1)
    ).first()


def ask(session: Session, because: str, now: datetime) -> PredictorRow:
    """Ask for a predictor to be trained; the daemon does it. One that waits already is not asked for twice."""
    waiting = _locked(session, PredictorState.CHALLENGER)
    if waiting:
        return waiting[0]
    row = PredictorRow(
        version=f"p{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        state=PredictorState.CHALLENGER,
        card_json="{}",
        because=because,
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row


def conclude(
    session: Session,
    version: str,
    *,
    is_better: bool,
    because: str,
    card: Mapping[str, Any],
    now: datetime,
    file: tuple[Path, str] | None = None,
    lessons: Mapping[str, Lessons] | None = None,
) -> None:
    """Promote a challenger that was judged better, or keep it out with the reason. One that is none any more stays."""
    rows = _locked(session, PredictorState.CHALLENGER, PredictorState.CHAMPION)
    row = next((row for row in rows if row.version == version and row.state == PredictorState.CHALLENGER), None)
    if row is None:
        return
    row.card_json = json.dumps(dict(card))
    row.because = because[:REASON_MAX]
    if file is not None:
        row.path, row.sha256 = str(file[0]), file[1]
    row.lessons_json = msgspec.json.encode(lessons).decode() if lessons else None
    if is_better:
        _enthrone(rows, row, now)
        row.promoted_at = now
    else:
        row.state = PredictorState.KEPT_OUT
    session.flush()


def promote(session: Session, version: str, now: datetime) -> PredictorRow:
    """Put a predictor in use, whatever it was judged. Raises NotFound, or Conflict where it has no file."""
    rows = _locked(session, *PredictorState)
    row = find_predictor(session, version)
    if row.state == PredictorState.CHAMPION:
        raise Conflict(f"The predictor '{version}' is in use already.", param="version")
    if row.path is None:
        raise Conflict(f"The predictor '{version}' has no file: {row.because}", param="version")
    _enthrone(rows, row, now)
    row.promoted_at = now
    row.because = "promoted by an operator"
    session.flush()
    return row


def check(row: PredictorRow) -> None:
    """Raises Conflict where a predictor's file is seen to be gone or changed. Reads it: for outside a transaction."""
    if (problem := _problem(row)) is not None:
        raise Conflict(f"The predictor '{row.version}' cannot be used. {problem} Put its file back.", param="version")


def unusable_before(rows: Sequence[PredictorRow]) -> list[str]:
    """The versions that a rollback has to pass over, newest first: their files are seen to be gone or changed.

    Reads the files of those, and of the one that it comes to: for outside a transaction.
    """
    present = next((row for row in rows if row.state == PredictorState.CHAMPION), None)
    return [row.version for row in takewhile(_problem, _before(rows, present))] if present is not None else []


def roll_back(session: Session, now: datetime, past: Collection[str] = ()) -> PredictorRow | None:
    """Put the one in use that was promoted before the present one, and before those it is to go `past`.

    None where there was none: plain priors then. Raises Conflict where none is in use.
    """
    rows = _locked(session, *PredictorState)
    present = next((row for row in rows if row.state == PredictorState.CHAMPION), None)
    if present is None:
        raise Conflict("No predictor is in use, so there is nothing to roll back; plans are made with plain priors.")
    before = next((row for row in _before(rows, present) if row.version not in past), None)
    present.state, present.retired_at = PredictorState.RETIRED, now
    if before is not None:
        _enthrone(rows, before, now)  # it keeps its time of promotion, so the next rollback goes further back
        before.because = f"rolled back to from {present.version}"
    session.flush()
    return before


def _before(rows: Sequence[PredictorRow], present: PredictorRow) -> list[PredictorRow]:
    """What was promoted before the present one and has a file, newest first."""
    earlier = [row for row in rows if row.path and row.promoted_at and row.promoted_at < _promoted_at(present)]
    return sorted(earlier, key=_promoted_at, reverse=True)


def _problem(row: PredictorRow) -> str | None:
    """What is wrong with a predictor's file, as far as it can be seen from here; None where it has none."""
    if row.path is None:
        return None
    try:
        predictor_files.check(Path(row.path), row.sha256 or "")
    except PredictorUnusable as unusable:
        return unusable.message
    return None


def _promoted_at(row: PredictorRow) -> datetime:
    assert row.promoted_at is not None, "it was promoted"
    return row.promoted_at


def _locked(session: Session, *states: PredictorState) -> Sequence[PredictorRow]:
    """The rows in these states, which nobody else moves until this transaction ends."""
    return session.scalars(
        select(PredictorRow)
        .where(PredictorRow.state.in_(states))
        .order_by(PredictorRow.version)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()


def _enthrone(rows: Sequence[PredictorRow], chosen: PredictorRow, now: datetime) -> None:
    for row in rows:
        if row.state == PredictorState.CHAMPION and row is not chosen:
            row.state, row.retired_at = PredictorState.RETIRED, now
    # Whether its file can be used is for the daemon to say, which may not notice that another was in use for a moment.
    chosen.state, chosen.retired_at = PredictorState.CHAMPION, None
