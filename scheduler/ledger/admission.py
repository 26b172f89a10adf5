"""Whether a wave may spend: the most it can cost is held on every limit that applies, or it is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from models.tables import Wave
from scheduler.errors import Cancelled, CapReached, LeaseLost, SchedulerError
from scheduler.ledger import purses
from scheduler.ledger.entries import entry, write_entries
from scheduler.ledger.limits import Limit, Limits, limits_of
from scheduler.ledger.prices import corrected_models, price_at
from scheduler.ledger.purses import lock_tenant
from scheduler.ledger.rows import Additions
from scheduler.ledger.terms import Reservation, WaveRequest
from scheduler.states import BatchState, WaveState
from scheduler.thresholds import Refusal, note_refusals


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """A wave that fits, as far as it was let in."""

    request: WaveRequest
    samples: int
    tokens_max: int
    held_nanousd: int


def reserve(session: Session, request: WaveRequest, now: datetime) -> Reservation:
    """Hold the most that a wave can cost, on every limit that applies; see `reserve_all`.

    Raises:
        CapReached: not even the smallest wave fits; `scope`, `need_nanousd`, `left_nanousd`, `turns_at` say where, and
            `may_come_back` whether what other waves hold could make room.
        Cancelled: the batch is no longer in progress.
        LeaseLost: the attempt belongs to this worker no more.
    """
    [result] = reserve_all(session, [request], now)
    if isinstance(result, SchedulerError):
        raise result
    return result


def reserve_all(session: Session, requests: Sequence[WaveRequest], now: datetime) -> list[Reservation | SchedulerError]:
    """Hold the most that each of one tenant's waves can cost, in order, on every limit that applies.

    Where a whole wave does not fit it shrinks: to fewer samples, then to fewer tokens, not below its `tokens_floor`.
    A wave that is refused takes nothing, and its place in the result holds the error that `reserve` would raise.
    """
    tenant_id = requests[0].funded.tenant_id
    timezone = lock_tenant(session, tenant_id)
    limits = limits_of(session, [request.funded for request in requests], timezone, now)
    if limits.are_prices_corrected:
        requests = _at_corrected_prices(session, requests, now)
    results: list[Admitted | SchedulerError] = [_judge(request, limits) for request in requests]
    note_refusals(session, _by_caps(results), now)
    admitted = [result for result in results if isinstance(result, Admitted)]
    holds = iter(_hold(session, tenant_id, limits.caps, admitted, now))
    return [next(holds) if isinstance(result, Admitted) else result for result in results]


def _judge(request: WaveRequest, limits: Limits) -> Admitted | SchedulerError:
    funded = request.funded
    state = limits.batch_states.get(funded.batch_id)
    if state != BatchState.IN_PROGRESS:
        return Cancelled(f"Batch {funded.batch_id} is {state}.")
    if (funded.attempt_id, funded.worker_id) not in limits.running:
        return LeaseLost(attempt_id=funded.attempt_id)
    return _admit(request, limits.over(funded))


def _at_corrected_prices(session: Session, requests: Sequence[WaveRequest], now: datetime) -> list[WaveRequest]:
    """The requests at present prices, where the price that a worker was told may have been mistaken."""
    prices = {model: price_at(session, model, now) for model in corrected_models(session)}
    return [
        replace(request, funded=replace(request.funded, price=prices.get(request.funded.model, request.funded.price)))
        for request in requests
    ]


def _admit(request: WaveRequest, limits: Sequence[Limit]) -> Admitted | CapReached:
    """Take the largest wave that fits from what the limits leave."""
    price = request.funded.price
    left = min((limit.left_nanousd for limit in limits), default=None)
    fit = _largest_wave(request, left)
    if fit is None:
        need = price.most_nanousd(request.prompt_tokens, 1, request.tokens_floor)
        for_good = [limit for limit in limits if not limit.may_leave(need)]
        return _refusal(min(for_good or limits, key=lambda limit: limit.left_nanousd), need)
    samples, tokens_max = fit
    amount = price.most_nanousd(request.prompt_tokens, samples, tokens_max)
    for limit in limits:
        limit.take(amount)
    return Admitted(request=request, samples=samples, tokens_max=tokens_max, held_nanousd=amount)


def _largest_wave(request: WaveRequest, left: int | None) -> tuple[int, int] | None:
    """The most samples, and only then tokens, whose worst case fits in what is left."""
    price, tokens_max = request.funded.price, request.tokens_max
    if left is None or price.most_nanousd(request.prompt_tokens, request.samples, tokens_max) <= left:
        return request.samples, tokens_max
    room = left - price.most_nanousd(request.prompt_tokens, 0, 0)
    per_sample = price.completion_nanousd * tokens_max
    if room < 0:
        return None
    if per_sample and room >= per_sample:
        return min(request.samples, room // per_sample), tokens_max
    tokens = room // price.completion_nanousd if price.completion_nanousd else tokens_max
    return (1, tokens) if tokens >= request.tokens_floor else None


def _refusal(limit: Limit, need: int) -> CapReached:
    return CapReached(
        f"The {limit.scope} leaves {limit.left_nanousd} nano-dollars, and the smallest wave may cost {need}.",
        scope=limit.scope,
        cap_period_id=limit.cap_period_id,
        turns_at=limit.turns_at,
        need_nanousd=need,
        left_nanousd=limit.left_nanousd,
        may_come_back=limit.may_leave(need),
    )


def _by_caps(results: Sequence[Admitted | SchedulerError]) -> Iterator[Refusal]:
    """The refusals of caps; a batch's or a query's own limit is no news to anybody but its owner."""
    for refused in results:
        if isinstance(refused, CapReached) and refused.attributes["cap_period_id"] is not None:
            of = refused.attributes
            yield Refusal(
                cap_period_id=of["cap_period_id"], left_nanousd=of["left_nanousd"], need_nanousd=of["need_nanousd"]
            )


def _hold(
    session: Session, tenant_id: str, caps: Sequence[Limit], admitted: Sequence[Admitted], now: datetime
) -> list[Reservation]:
    """Write what was admitted: each purse once with its sum, each only where its limit still allows it."""
    if not admitted:
        return []
    by_batch: Counter[str] = Counter()
    by_query: Counter[int] = Counter()
    for one in admitted:
        by_batch[one.request.funded.batch_id] += one.held_nanousd
        by_query[one.request.funded.query_id] += one.held_nanousd
    purses.HOLD.make(
        session,
        tenants=[{"key": tenant_id, "amount": by_batch.total()}],
        caps=[
            {"key": cap.cap_period_id, "amount": cap.taken_nanousd, "cap_limit": cap.limit_nanousd}
            for cap in caps
            if cap.taken_nanousd
        ],
        batches=[{"key": k, "amount": v} for k, v in sorted(by_batch.items())],
        queries=[{"key": k, "amount": v} for k, v in sorted(by_query.items())],
    )
    waves = [_wave_values(one, now) for one in admitted]
    ids = _ADD_WAVES.ids(session, waves)
    write_entries(
        session,
        [
            entry(wave | {"id": wave_id}, "reserve", held=wave["held_nanousd"], spent=0, now=now)
            for wave_id, wave in zip(ids, waves, strict=True)
        ],
    )
    return [
        Reservation(wave_id=wave_id, samples=one.samples, tokens_max=one.tokens_max, held_nanousd=one.held_nanousd)
        for wave_id, one in zip(ids, admitted, strict=True)
    ]


def _wave_values(admitted: Admitted, now: datetime) -> dict[str, Any]:
    funded = admitted.request.funded
    return {
        "attempt_id": funded.attempt_id,
        "query_id": funded.query_id,
        "batch_id": funded.batch_id,
        "tenant_id": funded.tenant_id,
        "state": WaveState.HELD,
        "samples_asked": admitted.samples,
        "tokens_max": admitted.tokens_max,
        "model": funded.model,
        "price_id": funded.price.id,
        "held_nanousd": admitted.held_nanousd,
        "prompt_tokens_held": admitted.request.prompt_tokens,
        "reserved_at": now,
    }


_ADD_WAVES = Additions(
    Wave,
    "attempt_id",
    "query_id",
    "batch_id",
    "tenant_id",
    "state",
    "samples_asked",
    "tokens_max",
    "model",
    "price_id",
    "held_nanousd",
    "prompt_tokens_held",
    "reserved_at",
)
