"""/v1/ledger: whether the books balance. For admins."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from models.tables import Audit
from scheduler import audit
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Admin
from scheduler.api.sessions import Reading, WithServices
from scheduler.api.shapes import Page, Reply, epoch

router = APIRouter(prefix="/v1/ledger", tags=["ledger"], route_class=StrictRoute)


class DiscrepancyReply(Reply):
    """One figure that does not add up: where it is kept, what its parts add up to, what it is."""

    table: str
    id: str
    what: str
    expected: int
    found: int


class VerdictReply(Reply):
    """How a look through the books ended; `shown` are the first of its discrepancies."""

    object: Literal["ledger_verdict"] = "ledger_verdict"
    balanced: bool
    entries: int
    discrepancies: int
    shown: list[DiscrepancyReply]
    began_at: int
    seconds: float


class AuditReply(Reply):
    """A look through the books that was recorded; `first` is the first thing that did not add up."""

    id: int
    object: Literal["ledger_audit"] = "ledger_audit"
    balanced: bool
    entries: int
    discrepancies: int
    first: str | None
    began_at: int
    seconds: float


@router.post("/verify", responses=documented(409))
def verify(_caller: Admin, services: WithServices) -> VerdictReply:
    """Recompute every balance and every entry, as they are at one instant, while everybody goes on writing."""
    verdict = audit.verify(services.sessions, services.clock)
    with services.sessions.begin() as session:
        audit.record(session, verdict)
    return VerdictReply(
        balanced=verdict.is_balanced,
        entries=verdict.entries,
        discrepancies=verdict.discrepancies,
        shown=[
            DiscrepancyReply(table=one.table, id=one.id, what=one.what, expected=one.expected, found=one.found)
            for one in verdict.shown
        ],
        began_at=epoch(verdict.began_at),
        seconds=(verdict.finished_at - verdict.began_at).total_seconds(),
    )


@router.get("/audits", responses=documented())
def list_audits(_caller: Admin, session: Reading) -> Page[AuditReply]:
    """The recorded audits, newest first; the daemon makes one every ALLOTD_VERIFY_EVERY_S seconds."""
    return Page(data=[_audit(row) for row in audit.audits(session)])


def _audit(row: Audit) -> AuditReply:
    return AuditReply(
        id=row.id,
        balanced=row.discrepancies == 0,
        entries=row.entries,
        discrepancies=row.discrepancies,
        first=row.first,
        began_at=epoch(row.began_at),
        seconds=(row.finished_at - row.began_at).total_seconds(),
    )
