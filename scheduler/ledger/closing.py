"""How a wave's hold becomes what it did cost: settled by its worker, or expired where that is dead."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Double, Update, func, select, update
from sqlalchemy.orm import Session

from models.tables import PriceRow, Wave
from scheduler.core.pricing import Price
from scheduler.errors import LeaseLost, SchedulerError
from scheduler.ledger import purses
from scheduler.ledger.entries import closing_entries, write_entries
from scheduler.ledger.periods import cap_moves
from scheduler.ledger.prices import corrected_price_id
from scheduler.ledger.purses import lock_tenant, moved
from scheduler.ledger.rows import NUMBER, TEXT, Changes, Lookup, Transfer, Values
from scheduler.ledger.samples import LOST, reconciled, write_samples
from scheduler.ledger.terms import Settlement
from scheduler.states import WaveState
from scheduler.thresholds import note_spending
from scheduler.types import Sample, Usage


def settle(session: Session, settlement: Settlement, now: datetime) -> tuple[int, ...]:
    """Post what a wave did cost, release the rest of its hold and keep its samples; returns the samples' row ids.

    Raises LeaseLost where the wave is no longer held.
    """
    [result] = settle_all(session, [settlement], now)
    if isinstance(result, SchedulerError):
        raise result
    return result


def settle_all(
    session: Session, settlements: Sequence[Settlement], now: datetime
) -> list[tuple[int, ...] | SchedulerError]:
    """Post what waves of one tenant did cost, release the rest and keep their samples; returns the samples' row ids.

    A cost above the hold is booked as it is: the tokens were made. A wave that is no longer held moves nothing, and its
    place in the result holds a LeaseLost.
    """
    lock_tenant(session, settlements[0].funded.tenant_id)
    held = _held_waves(session, [settlement.wave_id for settlement in settlements])
    # A second settlement of the same wave finds it gone.
    pairs = [(settlement, held.pop(settlement.wave_id, None)) for settlement in settlements]
    closings = [
        Closing(wave=wave, usage=s.usage, latency_s=s.latency_s, samples=len(s.samples))
        for s, wave in pairs
        if wave is not None
    ]
    _close(session, closings, WaveState.SETTLED, now)
    rows = [
        (wave.query_id, s.wave_id, position, sample)
        for s, wave in pairs
        if wave is not None
        for position, sample in enumerate(reconciled(s.samples, s.usage.completion))
    ]
    ids = write_samples(session, rows, now)
    return [
        LeaseLost(wave_id=s.wave_id)
        if wave is None
        else tuple(ids[s.wave_id, position] for position in range(len(s.samples)))
        for s, wave in pairs
    ]


def expire(session: Session, wave_id: int, now: datetime) -> int:
    """Close a dead worker's wave at what its last heartbeat reported; returns that cost in nano-dollars.

    Raises LeaseLost where the wave is no longer held.
    """
    tenant_id = session.scalars(select(Wave.tenant_id).where(Wave.id == wave_id)).one()
    lock_tenant(session, tenant_id)
    wave = _held_waves(session, [wave_id]).get(wave_id)
    if wave is None:
        raise LeaseLost(wave_id=wave_id)
    usage = Usage(
        prompt=wave.prompt_tokens,
        cached=wave.cached_tokens,
        completion=wave.completion_tokens,
        reasoning=wave.reasoning_tokens,
    )
    if usage.completion:
        lost = Sample(text="", tokens=usage.completion, reasoning_tokens=usage.reasoning, finish_reason=LOST)
        write_samples(session, [(wave.query_id, wave_id, 0, lost)], now)
    closing = Closing(wave=wave, usage=usage)
    _close(session, [closing], WaveState.EXPIRED, now)
    return closing.cost_nanousd


@dataclass(frozen=True, kw_only=True, slots=True)
class Closing:
    """A held wave's row, with the prices that count for it, and what it used and brought."""

    wave: Any
    usage: Usage
    latency_s: float | None = None
    samples: int = 0

    @property
    def cost_nanousd(self) -> int:
        """What it costs."""
        wave = self.wave
        price = Price(
            id=wave.paid_price_id,
            model=wave.model,
            prompt_nanousd=wave.prompt_nanousd,
            cached_nanousd=wave.cached_nanousd,
            completion_nanousd=wave.completion_nanousd,
        )
        return price.cost_nanousd(self.usage)


def _held_waves(session: Session, wave_ids: Sequence[int]) -> dict[int, Any]:
    """Those of the waves whose money is still held."""
    return {row.id: row for row in _HELD.rows(session, wave_ids)}


def _close(session: Session, closings: Sequence[Closing], state: WaveState, now: datetime) -> None:
    """Turn holds of one tenant, whose row is locked, into costs: move purses, close waves, write entries."""
    if not closings:
        return
    moves = [(closing.wave, closing.wave.held_nanousd, closing.cost_nanousd) for closing in closings]
    of_caps, watched = cap_moves(session, moves)
    _CLOSE.make(
        session,
        tenants=moved((wave.tenant_id, held, cost) for wave, held, cost in moves),
        caps=moved(of_caps),
        batches=moved((wave.batch_id, held, cost) for wave, held, cost in moves),
        queries=_query_moves(closings),
        waves=[_closed(closing, state, now) for closing in closings],
    )
    note_spending(session, watched, now)
    write_entries(session, [entry for wave, _, cost in moves for entry in closing_entries(wave, cost, state, now)])


def _closed(closing: Closing, state: WaveState, now: datetime) -> dict[str, Any]:
    used = {f"used_{name}": tokens for name, tokens in _token_counts(closing.usage).items()}
    return {
        "key": closing.wave.id,
        "to": state,
        "cost": closing.cost_nanousd,
        "price": closing.wave.paid_price_id,
        "latency": closing.latency_s,
        "at": now,
        **used,
    }


def _query_moves(closings: Sequence[Closing]) -> list[dict[str, int]]:
    """What each query's waves release, cost and used, summed: a query's row is written once."""
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    for closing in closings:
        more = {f"more_{name}": tokens for name, tokens in _token_counts(closing.usage).items()}
        moved = {"held": -closing.wave.held_nanousd, "spent": closing.cost_nanousd, "more_samples": closing.samples}
        sums[closing.wave.query_id].update(moved | more)
    return [{"key": query_id, **sums[query_id]} for query_id in sorted(sums)]


def _token_counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "cached_tokens": min(usage.cached, usage.prompt),  # as it is billed
        "completion_tokens": usage.completion,
        "reasoning_tokens": usage.reasoning,
    }


def _close_wave(values: Values) -> Update:
    return (
        update(Wave)
        .where(Wave.id == values["key"], Wave.state == WaveState.HELD)
        .values(
            state=values["to"],
            cost_nanousd=values["cost"],
            price_id=values["price"],
            latency_s=values["latency"],
            settled_at=values["at"],
            **{name: values[f"used_{name}"] for name in _token_counts(Usage())},
        )
    )


_CLOSE = Transfer(
    tenants=purses.MOVE_TENANT,
    caps=purses.MOVE_CAP,
    batches=purses.MOVE_BATCH,
    queries=purses.MOVE_QUERY,
    waves=Changes(
        _close_wave,
        key=NUMBER,
        to=TEXT,
        cost=NUMBER,
        price=NUMBER,
        latency=Double(),
        at=Wave.settled_at.type,
        used_prompt_tokens=NUMBER,
        used_cached_tokens=NUMBER,
        used_completion_tokens=NUMBER,
        used_reasoning_tokens=NUMBER,
    ),
)
_HELD = Lookup(
    lambda named: (
        select(
            *Wave.__table__.c,
            PriceRow.id.label("paid_price_id"),
            PriceRow.prompt_nanousd,
            PriceRow.cached_nanousd,
            PriceRow.completion_nanousd,
        )
        .join(PriceRow, PriceRow.id == func.coalesce(corrected_price_id(), Wave.price_id))
        .where(named(Wave.id), Wave.state == WaveState.HELD)
        .order_by(Wave.id)
    )
)
