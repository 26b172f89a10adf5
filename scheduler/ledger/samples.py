"""Which samples a wave leaves behind, with tokens that add up to what was billed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy.orm import Session

from models.tables import SampleRow
from scheduler.ledger.rows import Additions
from scheduler.types import Sample

LOST = "lost"
"""Why the sample of a dead worker's wave ended: its tokens are paid for, its text is gone."""

UNATTRIBUTED = "unattributed"
"""The same of tokens that the server billed and no sample accounts for."""


def reconciled(samples: Sequence[Sample], billed_tokens: int) -> list[Sample]:
    """The samples with token counts that add up to what the server billed, which is what is paid.

    Tokens that no sample accounts for become a sample of their own, without text; a server that billed fewer than it
    sent is believed, from the last sample backwards.
    """
    excess = sum(sample.tokens for sample in samples) - billed_tokens
    if excess < 0:
        return [*samples, Sample(text="", tokens=-excess, finish_reason=UNATTRIBUTED)]
    settled = list(samples)
    for position in range(len(settled) - 1, -1, -1):
        drop = min(excess, settled[position].tokens)
        settled[position] = replace(settled[position], tokens=settled[position].tokens - drop)
        excess -= drop
    return settled


def write_samples(
    session: Session, samples: Sequence[tuple[int, int, int, Sample]], now: datetime
) -> dict[tuple[int, int], int]:
    """Keep samples, given as (query id, wave id, position, sample); returns row ids by wave and position."""
    if not samples:
        return {}
    rows = [
        {
            "query_id": query_id,
            "wave_id": wave_id,
            "position": position,
            "text": _storable(sample.text),
            "message_json": _message_json(sample),
            "answer": _storable(sample.answer) if sample.answer is not None else None,
            "correct": sample.correct,
            "tokens": sample.tokens,
            "reasoning_tokens": sample.reasoning_tokens,
            "finish_reason": sample.finish_reason,
            "logprob_mean": sample.logprob_mean,
            "created_at": now,
        }
        for query_id, wave_id, position, sample in samples
    ]
    ids = _ADD_SAMPLES.ids(session, rows)
    return {(wave_id, position): row_id for (_, wave_id, position, _), row_id in zip(samples, ids, strict=True)}


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL in text."""
    return text.replace("\x00", "\ufffd")


def _message_json(sample: Sample) -> str | None:
    if sample.message is None:
        return None
    return _storable(json.dumps(sample.message))


_ADD_SAMPLES = Additions(
    SampleRow,
    "query_id",
    "wave_id",
    "position",
    "text",
    "message_json",
    "answer",
    "correct",
    "tokens",
    "reasoning_tokens",
    "finish_reason",
    "logprob_mean",
    "created_at",
)
