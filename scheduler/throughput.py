"""How many tokens a second a model made lately, as the ledger says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import Wave
from scheduler.states import WaveState

ROWS_AT_ONCE = 5_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Tokens billed, and the seconds in which at least one wave was running. Cached prompt tokens are not counted."""

    busy_s: float
    prompt_tokens: int
    completion_tokens: int


def recent_throughput(session: Session, model: str, hours: float, now: datetime) -> Throughput:
    """What the model did in the last hours. Waves overlap: the seconds of their union are counted, each once."""
    rows = session.execute(
        select(Wave.reserved_at, Wave.settled_at, Wave.prompt_tokens - Wave.cached_tokens, Wave.completion_tokens)
        .where(
            Wave.model == model,
            Wave.state == WaveState.SETTLED,
            Wave.settled_at.is_not(None),
            Wave.reserved_at >= now - timedelta(hours=hours),
        )
        .order_by(Wave.reserved_at),
        execution_options={"yield_per": ROWS_AT_ONCE},
    )
    busy, prompt, completion = timedelta(), 0, 0
    until = now - timedelta(hours=hours)
    for begun, ended, prompt_tokens, completion_tokens in rows:
        assert ended is not None, "a settled wave"
        prompt, completion = prompt + prompt_tokens, completion + completion_tokens
        busy += max(ended - max(begun, until), timedelta())
        until = max(until, ended)
    return Throughput(busy_s=busy.total_seconds(), prompt_tokens=prompt, completion_tokens=completion)
