"""/v1/predictors: what was learned, how it was judged, and which of it is in use. For admins."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path

from models.tables import PredictorRow
from scheduler import predictors
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin
from scheduler.api.sessions import Now, Reading, WithServices, Writing
from scheduler.api.shapes import Page, Reply, epoch, epoch_or_none
from scheduler.database import reading
from scheduler.priors import PLAIN
from scheduler.states import PredictorState

router = APIRouter(prefix="/v1/predictors", tags=["predictors"], route_class=StrictRoute)

Version = Annotated[str, Path(description="The predictor's version.")]
ASKED = "an operator asked"


class PredictorReply(Reply):
    """A predictor: its state, why it has it, and its card (what it was fitted and judged on, and how it did)."""

    version: str
    object: Literal["predictor"] = "predictor"
    state: Literal["champion", "challenger", "kept_out", "retired"]
    because: str
    usable: bool
    unusable_because: str | None
    sha256: str | None
    card: dict[str, Any]
    created_at: int
    promoted_at: int | None
    retired_at: int | None


class RolledBackReply(Reply):
    """What plans are made with after a rollback: a predictor, or plain priors where `predictor` is null.

    `passed_over` are versions in between whose files are gone or changed.
    """

    object: Literal["rollback"] = "rollback"
    version: str
    predictor: PredictorReply | None
    passed_over: list[str]


@router.post("", responses=documented(409))
def train_predictor(_caller: Admin, session: Writing, now: Now) -> PredictorReply:
    """Ask for a challenger to be fitted to the ledger; the daemon does so, and promotes it only if it is better.

    Its state is `challenger` until it was judged. One that waits already is returned instead of another.
    """
    return _reply(predictors.ask(session, ASKED, now))


@router.get("", responses=documented())
def list_predictors(_caller: Admin, session: Reading) -> Page[PredictorReply]:
    """Every predictor there was, newest first."""
    return Page(data=[_reply(row) for row in predictors.list_predictors(session)])


@router.post("/rollback", responses=documented(409))
def roll_back(_caller: Admin, services: WithServices, now: Now) -> RolledBackReply:
    """Put in use again what was before the present predictor: an earlier one with a sound file, or plain priors."""
    with reading(services.sessions) as session:
        rows = predictors.list_predictors(session)
    past = predictors.unusable_before(rows)
    with services.sessions.begin() as session:
        row = predictors.roll_back(session, now, past)
        predictor = _reply(row) if row else None
    return RolledBackReply(version=row.version if row else PLAIN, predictor=predictor, passed_over=past)


@router.get("/{version}", responses=documented())
def get_predictor(version: Version, _caller: Admin, session: Reading) -> PredictorReply:
    """One predictor."""
    return _reply(predictors.find_predictor(session, version))


@router.post("/{version}/promote", responses=documented(409))
def promote(version: Version, _caller: Admin, services: WithServices, now: Now) -> PredictorReply:
    """Put a predictor in use, whatever it was judged. The daemon follows at its next tick."""
    with reading(services.sessions) as session:
        row = predictors.find_predictor(session, version)
    predictors.check(row)
    with services.sessions.begin() as session:
        return _reply(predictors.promote(session, version, now))


def _reply(row: PredictorRow) -> PredictorReply:
    # The daemon looks at the champion's file only: what it once found of others need not be so any more.
    unusable_because = row.unusable_because if row.state == PredictorState.CHAMPION else None
    return PredictorReply.model_validate(
        {
            "version": row.version,
            "state": row.state,
            "because": row.because,
            "usable": row.path is not None and unusable_because is None,
            "unusable_because": unusable_because,
            "sha256": row.sha256,
            "card": json.loads(row.card_json),
            "created_at": epoch(row.created_at),
            "promoted_at": epoch_or_none(row.promoted_at),
            "retired_at": epoch_or_none(row.retired_at),
        }
    )
