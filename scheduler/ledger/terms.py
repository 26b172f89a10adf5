"""What callers of the ledger hand in and get back."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.pricing import Price
from scheduler.types import Sample, Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Funded:
    """An attempt as its worker holds it: whose money it spends, and on what."""

    attempt_id: int
    worker_id: str
    query_id: int
    batch_id: str
    tenant_id: str
    model: str
    price: Price


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """Money held for one wave; perhaps for fewer samples or tokens than asked."""

    wave_id: int
    samples: int
    tokens_max: int
    held_nanousd: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveRequest:
    """A wave that an attempt wants to run, and the fewest tokens per sample that still make sense."""

    funded: Funded
    samples: int
    tokens_max: int
    tokens_floor: int
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """What a wave did use, and the samples it brought."""

    funded: Funded
    wave_id: int
    usage: Usage
    latency_s: float | None
    samples: tuple[Sample, ...] = ()
