"""Money: hold the most a wave can cost, then post what it did cost and release the rest.

Every function runs in its caller's transaction, writes an entry for every nano-dollar it moves, and locks in one order:
tenant, cap periods, batches, queries, attempts, waves. Because every write of a tenant's money first updates the
tenant's own row, those writes happen one after the other, and what a limit leaves cannot change between looking and
taking. So that one hot tenant does not wait for a round trip per wave, many waves of a tenant are moved at once: limits
are read once, the waves are admitted one by one in memory, and each row is written once with the sum.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, Update, bindparam, insert, or_, select, update
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, Cap, CapPeriod, Entry, PriceRow, QueryRow, SampleRow, Tenant, Wave
from scheduler.core.periods import Period, period_bounds
from scheduler.core.pricing import Price
from scheduler.errors import Cancelled, CapReached, LeaseLost, ModelUnpriced, NotFound, SchedulerError
from scheduler.states import AttemptState, BatchState, WaveState
from scheduler.types import Sample, Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Funded:
    """An attempt as its worker holds it: whose money it spends, and on what."""

    attempt_id: int
    worker_id: str
    query_id: int
    batch_id: str
    tenant_id: str
    timezone: str
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


@dataclass(kw_only=True, slots=True)
class Limit:
    """One limit that reservations must fit under, and what it leaves. `turns_at` is when it starts anew, if ever."""

    scope: str
    limit_nanousd: int
    left_nanousd: int
    cap_period_id: int | None = None
    model: str | None = None
    turns_at: datetime | None = None
    taken_nanousd: int = field(default=0)


def price_at(session: Session, model: str, now: datetime) -> Price:
    """The price of a model's tokens at an instant. Raises ModelUnpriced."""
    row = session.scalars(
        select(PriceRow)
        .where(PriceRow.model == model, PriceRow.effective_at <= now)
        .order_by(PriceRow.effective_at.desc(), PriceRow.id.desc())
        .limit(1)
    ).first()
    if row is None:
        raise ModelUnpriced(
            f"Model '{model}' has no price, so what it spends cannot be limited; set one with "
            f"`allotd price set {model} --prompt USD_PER_MTOK --completion USD_PER_MTOK`.",
            model=model,
        )
    return as_price(row)


def as_price(row: PriceRow) -> Price:
    """A price row as the value that computes."""
    return Price(
        id=row.id,
        model=row.model,
        prompt_nanousd=row.prompt_nanousd,
        cached_nanousd=row.cached_nanousd,
        completion_nanousd=row.completion_nanousd,
    )


def reserve(session: Session, request: WaveRequest, now: datetime) -> Reservation:
    """Hold the most that a wave can cost, on every limit that applies; see `reserve_all`.

    Raises:
        CapReached: not even the smallest wave fits; `scope`, `need_nanousd`, `left_nanousd`, `turns_at` say where.
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
    tenant_id, timezone = requests[0].funded.tenant_id, requests[0].funded.timezone
    lock_tenant(session, tenant_id)
    caps = _cap_limits(session, tenant_id, timezone, now)
    batches, batch_limits = _batch_limits(session, {request.funded.batch_id for request in requests})
    query_limits = _query_limits(session, {request.funded.query_id for request in requests})
    mine = _still_mine(session, [request.funded for request in requests])
    results: list[Reservation | SchedulerError | None] = []
    admitted: list[tuple[WaveRequest, int, int, int]] = []
    for request in requests:
        funded = request.funded
        if batches.get(funded.batch_id) != BatchState.IN_PROGRESS:
            results.append(Cancelled(f"Batch {funded.batch_id} is {batches.get(funded.batch_id)}."))
            continue
        if funded.attempt_id not in mine:
            results.append(LeaseLost(attempt_id=funded.attempt_id))
            continue
        limits = [cap for cap in caps if cap.model in {None, funded.model}]
        limits += [
            limit
            for limit in (query_limits.get(funded.query_id), batch_limits.get(funded.batch_id))
            if limit is not None
        ]
        fit = _admit(request, limits)
        if isinstance(fit, CapReached):
            results.append(fit)
        else:
            admitted.append((request, *fit))
            results.append(None)
    holds = iter(_hold(session, tenant_id, caps, admitted, now))
    return [next(holds) if result is None else result for result in results]


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
    ids = _write_samples(session, rows, now)
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
        lost = Sample(text="", tokens=usage.completion, reasoning_tokens=usage.reasoning, finish_reason="lost")
        _write_samples(session, [(wave.query_id, wave_id, 0, lost)], now)
    _close(session, [(wave, usage, price, None, 0)], WaveState.EXPIRED, now)
    return price.cost_nanousd(usage)


def reconciled(samples: Sequence[Sample], billed_tokens: int) -> list[Sample]:
    """The samples with token counts that add up to what the server billed, which is what is paid.

    Tokens that no sample accounts for become a sample of their own, without text; a server that billed fewer than it
    sent is believed, from the last sample backwards.
    """
    excess = sum(sample.tokens for sample in samples) - billed_tokens
    if excess < 0:
        return [*samples, Sample(text="", tokens=-excess, finish_reason="unattributed")]
    settled = list(samples)
    for position in range(len(settled) - 1, -1, -1):
        drop = min(excess, settled[position].tokens)
        settled[position] = replace(settled[position], tokens=settled[position].tokens - drop)
        excess -= drop
    return settled


def live_caps(session: Session, tenant_id: str, model: str | None = None) -> Sequence[Cap]:
    """The caps in force for a tenant (and, where a model is named, for that model)."""
    caps = session.scalars(_LIVE_CAPS, {"tenant_id": tenant_id}, execution_options={"populate_existing": True}).all()
    return [cap for cap in caps if model is None or cap.model in {None, model}]


def current_period(session: Session, cap: Cap, timezone: str, now: datetime) -> CapPeriod:
    """The row of the cap's present period, made on first use (the tenant's row must be locked)."""
    starts_at, ends_at = period_bounds(Period(cap.period), now, timezone)
    period = session.scalars(
        _PERIOD, {"cap_id": cap.id, "starts_at": starts_at}, execution_options={"populate_existing": True}
    ).first()
    if period is None:
        period = CapPeriod(cap_id=cap.id, starts_at=starts_at, ends_at=ends_at, held_nanousd=0, spent_nanousd=0)
        session.add(period)
        session.flush()
    return period


def left_under(session: Session, cap: Cap, timezone: str, now: datetime) -> int:
    """What a cap leaves in its present period, without locking or making anything."""
    starts_at, _ = period_bounds(Period(cap.period), now, timezone)
    period = session.scalars(_PERIOD, {"cap_id": cap.id, "starts_at": starts_at}).first()
    used = period.held_nanousd + period.spent_nanousd if period is not None else 0
    return cap.limit_nanousd - used


def name_of(cap: Cap) -> str:
    """How a cap is named to people."""
    on_model = f" on {cap.model}" if cap.model else ""
    return f"cap {cap.id} ({cap.period}{on_model})"


def lock_tenant(session: Session, tenant_id: str) -> None:
    """Make every other write of this tenant's money wait for the end of this transaction."""
    # A write that changes nothing takes the row's lock in one round trip on PostgreSQL and costs nothing on SQLite,
    # whose transactions are alone already.
    if not _changed(session, _LOCK_TENANT, {"key": tenant_id}):
        raise NotFound(f"There is no tenant '{tenant_id}'.")


def _cap_limits(session: Session, tenant_id: str, timezone: str, now: datetime) -> list[Limit]:
    limits = []
    for cap in live_caps(session, tenant_id):
        period = current_period(session, cap, timezone, now)
        limits.append(
            Limit(
                scope=name_of(cap),
                limit_nanousd=cap.limit_nanousd,
                left_nanousd=cap.limit_nanousd - period.held_nanousd - period.spent_nanousd,
                cap_period_id=period.id,
                model=cap.model,
                turns_at=period.ends_at,
            )
        )
    return limits


def _batch_limits(session: Session, batch_ids: set[str]) -> tuple[dict[str, str], dict[str, Limit]]:
    """The state of each batch, and the limits of those that have one."""
    rows = session.execute(
        select(Batch.id, Batch.state, Batch.limit_nanousd, Batch.held_nanousd, Batch.spent_nanousd).where(
            Batch.id.in_(batch_ids)
        )
    ).all()
    return {row.id: row.state for row in rows}, {row.id: _limit("batch", row) for row in rows if _is_limited(row)}


def _query_limits(session: Session, query_ids: set[int]) -> dict[int, Limit]:
    rows = session.execute(
        select(QueryRow.id, QueryRow.limit_nanousd, QueryRow.held_nanousd, QueryRow.spent_nanousd).where(
            QueryRow.id.in_(query_ids), QueryRow.limit_nanousd.is_not(None)
        )
    )
    return {row.id: _limit("query", row) for row in rows}


def _is_limited(row: Any) -> bool:
    return row.limit_nanousd is not None


def _limit(scope: str, row: Any) -> Limit:
    left = row.limit_nanousd - row.held_nanousd - row.spent_nanousd
    return Limit(scope=scope, limit_nanousd=row.limit_nanousd, left_nanousd=left)


def _still_mine(session: Session, funded: Sequence[Funded]) -> set[int]:
    """The attempts that still run on the worker that asks; locked, so that none is taken back before the commit."""
    return set(
        session.scalars(
            select(Attempt.id)
            .where(
                Attempt.id.in_([f.attempt_id for f in funded]),
                Attempt.worker_id.in_({f.worker_id for f in funded}),
                Attempt.state == AttemptState.RUNNING,
            )
            .order_by(Attempt.id)
            .with_for_update()
        )
    )


def _admit(request: WaveRequest, limits: Sequence[Limit]) -> tuple[int, int, int] | CapReached:
    """Take the largest wave that fits from what the limits leave: (samples, tokens_max, nano-dollars)."""
    price = request.funded.price
    left = min((limit.left_nanousd for limit in limits), default=None)
    fit = _largest_wave(request, left)
    if fit is None:
        tightest = min(limits, key=lambda limit: limit.left_nanousd)
        return _refusal(tightest, price.most_nanousd(request.prompt_tokens, 1, request.tokens_floor))
    amount = price.most_nanousd(request.prompt_tokens, *fit)
    for limit in limits:
        limit.left_nanousd -= amount
        limit.taken_nanousd += amount
    return *fit, amount


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
    )


def _hold(
    session: Session,
    tenant_id: str,
    caps: Sequence[Limit],
    admitted: Sequence[tuple[WaveRequest, int, int, int]],
    now: datetime,
) -> list[Reservation]:
    """Write what was admitted: each purse once with its sum, each only where its limit still allows it."""
    if not admitted:
        return []
    by_batch: Counter[str] = Counter()
    by_query: Counter[int] = Counter()
    for request, _, _, amount in admitted:
        by_batch[request.funded.batch_id] += amount
        by_query[request.funded.query_id] += amount
    _must_change(session, _HOLD_TENANT, [{"key": tenant_id, "amount": by_batch.total()}])
    _must_change(
        session,
        _HOLD_CAP,
        [
            {"key": cap.cap_period_id, "amount": cap.taken_nanousd, "cap_limit": cap.limit_nanousd}
            for cap in caps
            if cap.taken_nanousd
        ],
    )
    _must_change(session, _HOLD_BATCH, [{"key": k, "amount": v} for k, v in sorted(by_batch.items())])
    _must_change(session, _HOLD_QUERY, [{"key": k, "amount": v} for k, v in sorted(by_query.items())])
    waves = [_wave_values(*wave, now) for wave in admitted]
    ids = list(session.scalars(insert(Wave).returning(Wave.id, sort_by_parameter_order=True), waves))
    session.execute(
        insert(Entry).inline(),
        [
            _entry(wave | {"id": wave_id}, "reserve", held=wave["held_nanousd"], spent=0, now=now)
            for wave_id, wave in zip(ids, waves, strict=True)
        ],
    )
    return [
        Reservation(wave_id=wave_id, samples=samples, tokens_max=tokens_max, held_nanousd=amount)
        for wave_id, (_, samples, tokens_max, amount) in zip(ids, admitted, strict=True)
    ]


def _wave_values(request: WaveRequest, samples: int, tokens_max: int, held: int, now: datetime) -> dict[str, Any]:
    funded = request.funded
    return {
        "attempt_id": funded.attempt_id,
        "query_id": funded.query_id,
        "batch_id": funded.batch_id,
        "tenant_id": funded.tenant_id,
        "state": WaveState.HELD,
        "samples_asked": samples,
        "tokens_max": tokens_max,
        "model": funded.model,
        "price_id": funded.price.id,
        "held_nanousd": held,
        "prompt_tokens_held": request.prompt_tokens,
        "reserved_at": now,
    }


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
    _move(session, _MOVE_TENANT, ((wave.tenant_id, held, cost) for wave, held, cost in moves))
    _move(session, _MOVE_CAP, _cap_moves(session, moves))
    _move(session, _MOVE_BATCH, ((wave.batch_id, held, cost) for wave, held, cost in moves))
    counts = [_token_counts(usage) for _, usage, _, _, _ in closings]
    queries = [
        {"key": wave.query_id, "held": -held, "spent": cost, "more_samples": closing[4]}
        | {f"more_{name}": tokens for name, tokens in count.items()}
        for (wave, held, cost), closing, count in zip(moves, closings, counts, strict=True)
    ]
    _must_change(session, _MOVE_QUERY, queries)
    waves = [
        {"key": wave.id, "to": state, "cost": cost, "latency": closing[3], "at": now, **count}
        for (wave, _, cost), closing, count in zip(moves, closings, counts, strict=True)
    ]
    _must_change(session, _CLOSE_WAVE, waves)
    entries = [entry for wave, _, cost in moves for entry in _closing_entries(wave, cost, state, now)]
    if entries:
        session.execute(insert(Entry).inline(), entries)


def _cap_moves(session: Session, moves: Sequence[tuple[Any, int, int]]) -> Iterable[tuple[int, int, int]]:
    """Each wave moves the money of the periods in which it was reserved, of all caps that are in force now."""
    tenant_id = moves[0][0].tenant_id
    instants = [wave.reserved_at for wave, _, _ in moves]
    periods = session.execute(_PERIODS, {"tenant_id": tenant_id, "first": min(instants), "last": max(instants)}).all()
    for period in periods:
        for wave, held, cost in moves:
            within = period.starts_at <= wave.reserved_at and (
                period.ends_at is None or wave.reserved_at < period.ends_at
            )
            if within and period.model in {None, wave.model}:
                yield period.id, held, cost


def _move(session: Session, statement: Update, moves: Iterable[tuple[Any, int, int]]) -> None:
    """Release and spend, summed per row."""
    held: Counter[Any] = Counter()
    spent: Counter[Any] = Counter()
    for key, release, cost in moves:
        held[key] += release
        spent[key] += cost
    _must_change(session, statement, [{"key": k, "held": -held[k], "spent": spent[k]} for k in sorted(held)])


def _token_counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.cached,
        "completion_tokens": usage.completion,
        "reasoning_tokens": usage.reasoning,
    }


def _closing_entries(wave: Any, cost: int, state: WaveState, now: datetime) -> list[dict[str, Any]]:
    covered = min(cost, wave.held_nanousd)
    rest = wave.held_nanousd - covered
    values = wave._asdict()
    entries = []
    if cost or state is WaveState.SETTLED:
        entries.append(_entry(values, "settle", held=-covered, spent=cost, now=now))
    if rest:
        kind = "release" if state is WaveState.SETTLED else "expire"
        entries.append(_entry(values, kind, held=-rest, spent=0, now=now))
    return entries


def _entry(wave: dict[str, Any], kind: str, *, held: int, spent: int, now: datetime) -> dict[str, Any]:
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


def _write_samples(
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
    ids = session.scalars(insert(SampleRow).returning(SampleRow.id, sort_by_parameter_order=True), rows)
    return {(wave_id, position): row_id for (_, wave_id, position, _), row_id in zip(samples, ids, strict=True)}


def _must_change(session: Session, statement: Update, parameters: Sequence[dict[str, Any]]) -> None:
    """Run a conditional UPDATE for each set of parameters; every one must find its row as it expects it.

    The tenant's lock makes that so. Where it is not, the transaction is undone rather than the books bent.
    """
    if not parameters:
        return
    result = session.connection().execute(statement, parameters)
    assert isinstance(result, CursorResult)
    if result.rowcount != len(parameters):
        raise SchedulerError(f"{len(parameters) - result.rowcount} rows were not as the ledger expected them.")


def _changed(session: Session, statement: Update, parameters: dict[str, Any]) -> bool:
    """Whether the conditional UPDATE found the row as it expected it."""
    result = session.connection().execute(statement, parameters)
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL in text."""
    return text.replace("\x00", "\ufffd")


def _message_json(sample: Sample) -> str | None:
    if sample.message is None:
        return None
    return _storable(json.dumps(sample.message))


def _hold_under_limit(table: type[Batch] | type[QueryRow]) -> Update:
    fits = or_(
        table.limit_nanousd.is_(None),
        table.held_nanousd + table.spent_nanousd + bindparam("amount") <= table.limit_nanousd,
    )
    return (
        update(table)
        .where(table.id == bindparam("key"), fits)
        .values(held_nanousd=table.held_nanousd + bindparam("amount"))
    )


def _move_purse(table: type[Tenant] | type[Batch] | type[QueryRow] | type[CapPeriod]) -> Update:
    return (
        update(table)
        .where(table.id == bindparam("key"))
        .values(
            held_nanousd=table.held_nanousd + bindparam("held"),
            spent_nanousd=table.spent_nanousd + bindparam("spent"),
        )
    )


# Statements are built once: building one costs more than running it.
_LOCK_TENANT = update(Tenant).where(Tenant.id == bindparam("key")).values(held_nanousd=Tenant.held_nanousd)
_HOLD_TENANT = (
    update(Tenant).where(Tenant.id == bindparam("key")).values(held_nanousd=Tenant.held_nanousd + bindparam("amount"))
)
_HOLD_BATCH = _hold_under_limit(Batch)
_HOLD_QUERY = _hold_under_limit(QueryRow)
_HOLD_CAP = (
    update(CapPeriod)
    .where(
        CapPeriod.id == bindparam("key"),
        CapPeriod.held_nanousd + CapPeriod.spent_nanousd + bindparam("amount") <= bindparam("cap_limit"),
    )
    .values(held_nanousd=CapPeriod.held_nanousd + bindparam("amount"))
)
_MOVE_TENANT = _move_purse(Tenant)
_MOVE_CAP = _move_purse(CapPeriod)
_MOVE_BATCH = _move_purse(Batch)
_MOVE_QUERY = _move_purse(QueryRow).values(
    samples_drawn=QueryRow.samples_drawn + bindparam("more_samples"),
    prompt_tokens=QueryRow.prompt_tokens + bindparam("more_prompt_tokens"),
    cached_tokens=QueryRow.cached_tokens + bindparam("more_cached_tokens"),
    completion_tokens=QueryRow.completion_tokens + bindparam("more_completion_tokens"),
    reasoning_tokens=QueryRow.reasoning_tokens + bindparam("more_reasoning_tokens"),
)
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
_LIVE_CAPS = (
    select(Cap)
    .where(Cap.tenant_id == bindparam("tenant_id"), Cap.removed_at.is_(None))
    .order_by(Cap.created_at, Cap.id)
)
_PERIOD = select(CapPeriod).where(
    CapPeriod.cap_id == bindparam("cap_id"), CapPeriod.starts_at == bindparam("starts_at")
)
_PERIODS = (
    select(CapPeriod.id, CapPeriod.starts_at, CapPeriod.ends_at, Cap.model)
    .join(Cap, Cap.id == CapPeriod.cap_id)
    .where(
        Cap.tenant_id == bindparam("tenant_id"),
        Cap.removed_at.is_(None),
        CapPeriod.starts_at <= bindparam("last"),
        or_(CapPeriod.ends_at.is_(None), CapPeriod.ends_at > bindparam("first")),
    )
    .order_by(CapPeriod.id)
)
