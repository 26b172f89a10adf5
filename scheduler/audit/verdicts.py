"""When the books were last looked through, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Audit, Entry
from scheduler.alerts import raise_alert
from scheduler.audit.discrepancies import Check, Discrepancy, compared
from scheduler.database import snapshot
from scheduler.types import AlertKind

SHOWN = 20
"""Discrepancies told in full: the first already says that something is wrong, and a few show the pattern."""
KEPT = 200
"""Audits remembered: a week of hourly ones."""

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How a look through the books ended. `shown` are the first of its `discrepancies`."""

    began_at: datetime
    finished_at: datetime
    entries: int
    discrepancies: int
    shown: tuple[Discrepancy, ...]

    @property
    def is_balanced(self) -> bool:
        """Whether everything adds up."""
        return self.discrepancies == 0


def verified(
    sessions: sessionmaker[Session], checks: Sequence[Callable[[], Check]], clock: Callable[[], datetime]
) -> Verdict:
    """Look through the books as they are at one instant, while everybody goes on writing."""
    began_at = clock()
    shown: list[Discrepancy] = []
    count = 0
    with snapshot(sessions) as session:
        entries = session.scalar(select(func.count()).select_from(Entry)) or 0
        for check in checks:
            for found in compared(session, check()):
                count += 1
                if len(shown) < SHOWN:
                    shown.append(found)
    return Verdict(began_at=began_at, finished_at=clock(), entries=entries, discrepancies=count, shown=tuple(shown))


def record(session: Session, verdict: Verdict) -> None:
    """Remember a verdict, and log it as an error where the books do not balance."""
    seconds = round((verdict.finished_at - verdict.began_at).total_seconds(), 3)
    first = str(verdict.shown[0]) if verdict.shown else None
    session.add(
        Audit(
            began_at=verdict.began_at,
            finished_at=verdict.finished_at,
            entries=verdict.entries,
            discrepancies=verdict.discrepancies,
            first=first,
        )
    )
    session.flush()
    oldest = select(Audit.id).order_by(Audit.id.desc()).offset(KEPT).limit(1).scalar_subquery()
    session.execute(delete(Audit).where(Audit.id <= oldest).execution_options(synchronize_session=False))
    if verdict.is_balanced:
        log.info("ledger_balanced", entries=verdict.entries, seconds=seconds)
        return
    log.error("ledger_unbalanced", discrepancies=verdict.discrepancies, first=first, entries=verdict.entries)
    message = f"The books do not balance: {verdict.discrepancies} figures do not add up, the first: {first}."
    raise_alert(session, AlertKind.LEDGER_UNBALANCED, "ledger", message=message, now=verdict.finished_at)


def audits(session: Session) -> Sequence[Audit]:
    """The recorded audits, newest first."""
    return session.scalars(select(Audit).order_by(Audit.id.desc())).all()


def last_audit(session: Session) -> Audit | None:
    """The newest of them."""
    return session.scalars(select(Audit).order_by(Audit.id.desc()).limit(1)).first()
