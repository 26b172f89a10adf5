"""How a wave's hold becomes what it did cost: settled by its worker, or expired where that is dead."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from models.tables import PriceRow, Wave
from scheduler.core.pricing import Price
from scheduler.errors import LeaseLost, SchedulerError
from scheduler.ledger import purses
from scheduler.ledger.entries import closing_entries, write_entries
from scheduler.ledger.periods import cap_moves
from scheduler.ledger.prices import as_price
from scheduler.ledger.purses import lock_tenant, move, must_change
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
    closing = []
    for settlement in settlements:
        wave = held.pop(settlement.wave_id, None)  # a second settlement of the same wave finds it gone
        closing.append((settlement, wave))
    _close(
        session,
        [(wave, s.usage, s.funded.price, s.latency_s, len(s.samples)) for s, wave in closing if wave is not None],
        WaveState.SETTLED,
        now,
    )
    rows = [
        (s.funded.query_id, s.wave_id, position, sample)
        for s, wave in closing
        if wave is not None
        for position, sample in enumerate(reconciled(s.samples, s.usage.completion))
    ]
    ids = write_samples(session, rows, now)
    return [
        LeaseLost(wave_id=s.wave_id)
        if wave is None
        else tuple(ids[s.wave_id, position] for position in range(len(s.samples)))
        for s, wave in closing
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
    price = as_price(session.get_one(PriceRow, wave.price_id))
    if usage.completion:
        lost = Sample(text="", tokens=usage.completion, reasoning_tokens=usage.reasoning, finish_reason=LOST)
        write_samples(session, [(wave.query_id, wave_id, 0, lost)], now)
    _close(session, [(wave, usage, price, None, 0)], WaveState.EXPIRED, now)
    return price.cost_nanousd(usage)


def _held_waves(session: Session, wave_ids: Sequence[int]) -> dict[int, Any]:
    """Those of the waves whose money is still held."""
    rows = session.execute(
        select(Wave.__table__).where(Wave.id.in_(wave_ids), Wave.state == WaveState.HELD).order_by(Wave.id)
    )
    return {row.id: row for row in rows}


Closing = tuple[Any, Usage, Price, float | None, int]
"""A held wave's row, what it used, its price, its latency and the number of samples it brought."""


def _close(session: Session, closings: Sequence[Closing], state: WaveState, now: datetime) -> None:
    """Turn holds of one tenant, whose row is locked, into costs: move purses, close waves, write entries."""
    if not closings:
        return
    moves = [(wave, wave.held_nanousd, price.cost_nanousd(usage)) for wave, usage, price, _, _ in closings]
    move(session, purses.MOVE_TENANT, ((wave.tenant_id, held, cost) for wave, held, cost in moves))
    of_caps, watched = cap_moves(session, moves)
    move(session, purses.MOVE_CAP, of_caps)
    note_spending(session, watched, now)
    move(session, purses.MOVE_BATCH, ((wave.batch_id, held, cost) for wave, held, cost in moves))
    counts = [_token_counts(usage) for _, usage, _, _, _ in closings]
    queries = [
        {"key": wave.query_id, "held": -held, "spent": cost, "more_samples": closing[4]}
        | {f"more_{name}": tokens for name, tokens in count.items()}
        for (wave, held, cost), closing, count in zip(moves, closings, counts, strict=True)
    ]
    must_change(session, purses.MOVE_QUERY, queries)
    waves = [
        {"key": wave.id, "to": state, "cost": cost, "latency": closing[3], "at": now, **count}
        for (wave, _, cost), closing, count in zip(moves, closings, counts, strict=True)
    ]
    must_change(session, _CLOSE_WAVE, waves)
    write_entries(session, [entry for wave, _, cost in moves for entry in closing_entries(wave, cost, state, now)])


def _token_counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "cached_tokens": min(usage.cached, usage.prompt),  # as it is billed
        "completion_tokens": usage.completion,
        "reasoning_tokens": usage.reasoning,
    }


_CLOSE_WAVE = (
    update(Wave)
    .where(Wave.id == bindparam("key"), Wave.state == WaveState.HELD)
    .values(
        state=bindparam("to"),
        cost_nanousd=bindparam("cost"),
        latency_s=bindparam("latency"),
        settled_at=bindparam("at"),
        prompt_tokens=bindparam("prompt_tokens"),
        cached_tokens=bindparam("cached_tokens"),
        completion_tokens=bindparam("completion_tokens"),
        reasoning_tokens=bindparam("reasoning_tokens"),
    )
)
