"""What commands do on the database itself, without a server."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scheduler import audit
from scheduler.database import open_database, sessions
from scheduler.settings import Settings
from scheduler.wiring import utc_now


def verdict() -> dict[str, Any]:
    """The books of the database at ALLOTD_DATABASE_URL looked through, as the API tells it; nothing is written."""
    engine = open_database(Settings.from_env().database_url)
    try:
        found = audit.verify(sessions(engine), utc_now)
    finally:
        engine.dispose()
    return {
        "object": "ledger_verdict",
        "balanced": found.is_balanced,
        "entries": found.entries,
        "discrepancies": found.discrepancies,
        "shown": [asdict(one) for one in found.shown],
        "began_at": int(found.began_at.timestamp()),
        "seconds": (found.finished_at - found.began_at).total_seconds(),
    }
