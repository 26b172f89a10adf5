"""What an entry says: one movement of money, keyed so that writing it twice is impossible."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from models.tables import Entry
from scheduler.ledger.rows import Additions
from scheduler.states import WaveState


def write_entries(session: Session, entries: Sequence[dict[str, Any]]) -> None:
    """Add entries; one that is there already fails the transaction."""
    _ADD_ENTRIES.make(session, entries)


def closing_entries(wave: Any, cost: int, state: WaveState, now: datetime) -> list[dict[str, Any]]:
    """What ends a hold: the cost, covered by the hold as far as it goes, and the release of the rest."""
    covered = min(cost, wave.held_nanousd)
    rest = wave.held_nanousd - covered
    values = {**wave._asdict(), "price_id": wave.paid_price_id}
    entries = []
    if cost or state is WaveState.SETTLED:
        entries.append(entry(values, "settle", held=-covered, spent=cost, now=now))
    if rest:
        kind = "release" if state is WaveState.SETTLED else "expire"
        entries.append(entry(values, kind, held=-rest, spent=0, now=now))
    return entries


def entry(wave: dict[str, Any], kind: str, *, held: int, spent: int, now: datetime) -> dict[str, Any]:
    """An entry counts to the period in which its wave was reserved."""
    return {
        "key": f"{kind}:{wave['id']}",
        "kind": kind,
        "tenant_id": wave["tenant_id"],
        "batch_id": wave["batch_id"],
        "query_id": wave["query_id"],
        "wave_id": wave["id"],
        "model": wave["model"],
        "price_id": wave["price_id"],
        "held_delta_nanousd": held,
        "spent_delta_nanousd": spent,
        "effective_at": wave["reserved_at"],
        "created_at": now,
    }


_ADD_ENTRIES = Additions(
    Entry,
    "key",
    "kind",
    "tenant_id",
    "batch_id",
    "query_id",
    "wave_id",
    "model",
    "price_id",
    "held_delta_nanousd",
    "spent_delta_nanousd",
    "effective_at",
    "created_at",
)
