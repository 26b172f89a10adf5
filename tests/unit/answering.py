"""Queries that were answered: through the ledger and settlement, as a worker would."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from models.tables import Batch, QueryRow
from scheduler import ledger, settlement
from scheduler.ledger import Settlement, WaveRequest
from scheduler.states import QueryState
from scheduler.types import Outcome, Sample, Usage
from tests.factories import NOW, add_query, fund

PROMPT_TOKENS, TOKENS = 10, 5
"""Of every wave, and of every sample; 1 and 2 nano-dollars each (tests.factories)."""


def wave_nanousd(samples: int) -> int:
    """What a wave of `answer` costs."""
    return PROMPT_TOKENS + samples * TOKENS * 2


def answer(
    session: Session,
    batch: Batch,
    *texts: str,
    verifier: str | None = None,
    task: str | None = None,
    correct: bool | None = None,
    state: QueryState = QueryState.ANSWERED,
    at: datetime = NOW,
    seconds: float = 1.0,
) -> QueryRow:
    """A query whose one wave brought these texts, of which the first was chosen unless the query failed."""
    row = add_query(session, batch, verifier=verifier, task=task, started_at=at, prompt_tokens_estimated=12)
    funded = fund(session, row, now=at)
    request = WaveRequest(
        funded=funded, samples=len(texts), tokens_max=50, tokens_floor=50, prompt_tokens=PROMPT_TOKENS
    )
    hold = ledger.reserve(session, request, at)
    samples = tuple(Sample(text=text, tokens=TOKENS, correct=correct) for text in texts)
    usage = Usage(prompt=PROMPT_TOKENS, cached=4, completion=len(texts) * TOKENS, reasoning=1)
    done = Settlement(funded=funded, wave_id=hold.wave_id, usage=usage, latency_s=seconds, samples=samples)
    row_ids = ledger.settle(session, done, at)
    outcome = Outcome(chosen=samples[0], because="test") if state != QueryState.FAILED else None
    end = (
        settlement.answered(funded, state, outcome, row_ids[0])
        if outcome is not None
        else settlement.Ending(funded=funded, state=state, because="engine_error")
    )
    [refused] = settlement.end_all(session, [end], at + timedelta(seconds=seconds))
    assert refused is None
    session.refresh(row)
    return row
