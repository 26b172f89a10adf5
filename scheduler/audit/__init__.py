"""Whether the books balance: every purse from its entries, every entry from its wave, every wave from its samples.

Each check is one statement that returns only what is wrong, so memory does not grow with the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from sqlalchemy.orm import Session, sessionmaker

from scheduler.audit import balances, entries, verdicts, waves
from scheduler.audit.discrepancies import Discrepancy, compared
from scheduler.audit.verdicts import Verdict, audits, last_audit, record

CHECKS = (*balances.CHECKS, *waves.CHECKS, *entries.CHECKS)

__all__ = ["CHECKS", "Discrepancy", "Verdict", "audits", "discrepancies", "last_audit", "record", "verify"]


def discrepancies(session: Session) -> Iterator[Discrepancy]:
    """Everything that does not add up in this session's view of the database; nothing where the books balance."""
    for check in CHECKS:
        yield from compared(session, check())


def verify(sessions: sessionmaker[Session], clock: Callable[[], datetime]) -> Verdict:
    """Look through the books as they are at one instant, while everybody goes on writing. Nothing is written."""
    return verdicts.verified(sessions, CHECKS, clock)
