"""Drives one query: asks its strategy what it wants, pays for it, gets it, and settles before it asks again.

No transaction is open while tokens are generated. Samples that an earlier attempt paid for are handed to the strategy
first and are never bought again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from scheduler import engines, ledger, settlement
from scheduler.core.strategies import STRATEGIES, Generate, Score
from scheduler.drafts import tokens_floor
from scheduler.engine import Engine, Generation, GenerationRequest
from scheduler.errors import (
    Cancelled,
    CapReached,
    EngineError,
    EngineRejected,
    EngineUnavailable,
    LeaseLost,
)
from scheduler.ledger import Settlement, WaveRequest
from scheduler.settlement import KeptSample, Work
from scheduler.states import USABLE, QueryState
from scheduler.transactions import Transact
from scheduler.types import Outcome, Plan, Query, Sample, Usage, VerifierSpec
from scheduler.verification import label

ENGINE_TRIES = 3
"""Times a query may meet a failing (not merely unreachable) engine before it fails; it may itself be the cause."""

BACKOFF_S, BACKOFF_MAX_S = 0.5, 15.0
"""Waits while the engine is away; they double up to the length of a vLLM start-up's last part."""
HELD_BACKOFF_MAX_S = 2.0
"""The longest pause of a query that waits for money which waves of its batch hold. They are few: lines that nothing
could be held for are not planned (`scheduler.shortage`)."""

OWN_PARAMS = frozenset({"temperature", "max_tokens", "max_completion_tokens", "n", "seed", "stream", "stream_options"})
"""Body fields that allotd sets itself; the others go to the engine as they came."""

log = structlog.get_logger()


@dataclass(slots=True)
class Flags:
    """What the worker tells a running query from outside. `abort` wakes the engine; the reason says what follows."""

    abort: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    stopping: bool = False
    lost: bool = False


Report = Callable[[int, Usage], None]
"""Told the usage so far of a running wave, by wave id."""


@dataclass(slots=True)
class Drive:
    """One query on its way through its strategy."""

    work: Work
    engine: Engine
    transact: Transact
    report: Report
    flags: Flags = field(default_factory=Flags)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """What the engine takes at once; shared by all queries of a worker."""
    distrust: Callable[[str], None] = field(default=lambda _because: None)
    """Told, once it is written down, why the engine is to be asked nothing more."""
    _bank: list[KeptSample] = field(default_factory=list)
    _taken: list[KeptSample] = field(default_factory=list)
    _refused: CapReached | None = None
    _failure: EngineError | None = None

    async def run(self) -> None:
        """Drive the query to its outcome, or give it back. Raises nothing that the worker could mend."""
        self._bank = list(self.work.kept)
        try:
            await self._run_strategy()
        except CapReached as refused:
            if self.work.plan.escalates:
                await self._end(settlement.handed_on(self.work.funded))  # another model may have a cap with room
            else:
                await self._end(settlement.parked(self.work.funded, refused))
                log.info("query_parked", query=self.work.query.id, because=refused.attributes["scope"])
        except Cancelled:
            await self._give_up()
        except EngineError as error:
            await self._end(settlement.failed(self.work.funded, error))
            log.warning("query_failed", query=self.work.query.id, code=error.code, message=error.message)
        except LeaseLost:
            log.warning("lease_lost", query=self.work.query.id, attempt=self.work.funded.attempt_id)

    async def _run_strategy(self) -> None:
        steps = STRATEGIES[self.work.plan.arm.kind](self.work.query, self.work.plan)
        try:
            want = next(steps)
            while True:
                if isinstance(want, Generate):
                    want = steps.send(await self._samples(want))
                else:
                    want = steps.send(rewards(want))
        except StopIteration as end:
            await self._finish(end.value)

    async def _samples(self, want: Generate) -> tuple[Sample, ...]:
        """Up to n samples: those already paid for first, then bought ones; none where the budget is at its end."""
        if not self._bank:
            self._bank.extend(await self._buy(want))
        taken, self._bank = self._bank[: want.n], self._bank[want.n :]
        self._taken.extend(taken)
        return tuple(kept.sample for kept in taken)

    async def _buy(self, want: Generate) -> list[KeptSample]:
        """Generate one wave of at most n samples and pay for it.

        Waits while the engine is away, and while other waves of its batch hold the money that it needs.
        """
        backoff_s, tries = BACKOFF_S, 0
        while True:
            self._check_flags()
            try:
                bought = await self._wave(want)
            except CapReached as refused:
                if refused.attributes["cap_period_id"] is not None:
                    raise  # a tenant's cap turns or is raised; the query waits for that
                if not refused.attributes["may_come_back"]:
                    self._refused = refused
                    return []
                backoff_s = min(backoff_s, HELD_BACKOFF_MAX_S)
            except EngineUnavailable as error:
                log.info("engine_unavailable", query=self.work.query.id, message=error.message, wait_s=backoff_s)
            except EngineRejected as error:
                self._failure = error  # asking again is useless; what is paid for already may hold an answer
                return []
            except EngineError as error:
                tries += 1
                if tries >= ENGINE_TRIES:
                    self._failure = error
                    return []
            else:
                if bought:
                    return bought
                self._check_flags()
                tries += 1  # the engine broke off before any sample was whole
                if tries >= ENGINE_TRIES:
                    self._failure = EngineError("The engine broke off every try before a sample was whole.")
                    return []
            await self._pause(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _wave(self, want: Generate) -> list[KeptSample]:
        """Reserve, generate, settle. Money held is released whatever happens in between."""
        work, funded = self.work, self.work.funded
        hold = await self.transact.together(
            ledger.reserve_all,
            WaveRequest(
                funded=funded,
                samples=want.n,
                tokens_max=want.tokens_max,
                tokens_floor=tokens_floor(work.plan, work.prediction),
                prompt_tokens=work.query.prompt_tokens_max,
            ),
            key=funded.tenant_id,
        )
        try:
            async with self.places:
                self._check_flags()
                begun = asyncio.get_running_loop().time()
                generation = await self.engine.generate(
                    self._request(hold), self.flags.abort, partial(self.report, hold.wave_id)
                )
        except BaseException:
            await asyncio.shield(self._settle(hold.wave_id, Generation(samples=(), usage=Usage()), (), 0.0))
            raise
        if complaint := generation.complaint or overrun(hold, generation.usage):
            await self._quarantine(complaint)
        spec = work.query.verifier
        samples = await asyncio.to_thread(_labelled, generation.samples, spec)
        latency_s = asyncio.get_running_loop().time() - begun
        row_ids = await asyncio.shield(self._settle(hold.wave_id, generation, samples, latency_s))
        kept = [KeptSample(row_id=r, sample=s, model=funded.model) for r, s in zip(row_ids, samples, strict=True)]
        return [k for k in kept if k.sample.finish_reason in USABLE]

    async def _settle(
        self, wave_id: int, generation: Generation, samples: tuple[Sample, ...], latency_s: float
    ) -> tuple[int, ...]:
        settlement = Settlement(
            funded=self.work.funded, wave_id=wave_id, usage=generation.usage, latency_s=latency_s, samples=samples
        )
        return await self.transact.together(ledger.settle_all, settlement, key=self.work.funded.tenant_id)

    async def _quarantine(self, because: str) -> None:
        """Have the engine asked nothing more. What it made is paid for and kept all the same."""
        found = engines.Distrust(worker_id=self.work.funded.worker_id, because=because)
        await asyncio.shield(self.transact.together(engines.quarantine_all, found, key=""))
        self.distrust(because)

    def _request(self, hold: ledger.Reservation) -> GenerationRequest:
        query = self.work.query
        return GenerationRequest(
            request_id=f"allotd-{hold.wave_id}",
            model=query.model,
            messages=query.messages,
            n=hold.samples,
            tokens_max=hold.tokens_max,
            temperature=query.temperature,
            seed=wave_seed(query.params, query.id, drawn=len(self._taken)),
            params={key: value for key, value in query.params.items() if key not in OWN_PARAMS},
        )

    async def _finish(self, outcome: Outcome) -> None:
        """Write the outcome that the strategy returned, as what it is, or hand the query on to another model."""
        if self._is_in_vain(outcome):
            await self._end(settlement.handed_on(self.work.funded))
            return
        row_id = next((kept.row_id for kept in self._taken if kept.sample is outcome.chosen), None)
        if outcome.chosen is None and self.work.earlier:
            outcome, row_id = best_of(self.work.query, self.work.plan, self.work.earlier)
        state = QueryState.ANSWERED
        if self._refused is not None:
            outcome = replace(outcome, because=f"{self._refused.attributes['scope']} limit reached")
            state = QueryState.BUDGET_STOPPED
        elif outcome.chosen is None:
            raise self._failure or EngineError("The engine returned no sample.")
        elif isinstance(self._failure, EngineRejected):
            outcome = replace(outcome, because="engine refused more; best so far")
        elif self._failure is not None:
            outcome = replace(outcome, because="engine failed; best so far")
        await self._end(settlement.answered(self.work.funded, state, outcome, row_id))

    def _is_in_vain(self, outcome: Outcome) -> bool:
        """Whether this model has drawn what it may without an accepted answer, and another is to be asked.

        One that drew nothing would be asked again and again.
        """
        has_bought = len(self._taken) > len(self.work.kept)
        is_accepted = outcome.chosen is not None and outcome.chosen.correct is True
        broke_off = self._refused is not None or self._failure is not None
        return self.work.plan.escalates and has_bought and not is_accepted and not broke_off

    async def _end(self, ending: settlement.Ending) -> None:
        await self.transact.together(settlement.end_all, ending, key=ending.funded.tenant_id)

    async def _give_up(self) -> None:
        """End an attempt whose batch was cancelled, or hand the query back where the worker is to stop."""
        if self.flags.lost:
            return
        if self.flags.stopping and not self.flags.cancelled:
            end = settlement.given_back(self.work.funded)
        else:
            kept = (*self.work.earlier, *self._taken, *self._bank)
            outcome, row_id = best_of(self.work.query, self.work.plan, kept)
            end = settlement.called_off(self.work.funded, outcome, row_id)
        try:
            await self._end(end)
        except LeaseLost:
            log.info("already_ended", query=self.work.query.id)

    def _check_flags(self) -> None:
        if self.flags.lost:
            raise LeaseLost(attempt_id=self.work.funded.attempt_id)
        if self.flags.cancelled or self.flags.stopping:
            raise Cancelled

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.flags.abort.wait()
        except TimeoutError:
            return


def best_of(query: Query, plan: Plan, kept: Sequence[KeptSample]) -> tuple[Outcome, int | None]:
    """What the query's strategy makes of all samples that are there, without any more, and the chosen one's row."""
    plan = replace(plan, samples_max=max(plan.samples_max, len(kept)), price=0.0)  # they are paid for
    steps = STRATEGIES[plan.arm.kind](query, plan)
    bank = list(kept)
    try:
        want = next(steps)
        while True:
            if isinstance(want, Generate):
                taken, bank = bank[: want.n], bank[want.n :]
                want = steps.send(tuple(k.sample for k in taken))
            else:
                want = steps.send(rewards(want))
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome, next((k.row_id for k in kept if k.sample is outcome.chosen), None)


def rewards(want: Score) -> tuple[float, ...]:
    """The outcome reward of each sample: 1 where the verifier accepted it, else 0."""
    return tuple(1.0 if sample.correct else 0.0 for sample in want.samples)


def overrun(hold: ledger.Reservation, usage: Usage) -> str | None:
    """What to say of an engine that reports more completion tokens than it was allowed to make; None where it obeyed.

    A prompt of more tokens than were held is no such sign: that count was our estimate.
    """
    allowed = hold.samples * hold.tokens_max
    if usage.completion <= allowed:
        return None
    return f"It reported {usage.completion} completion tokens where {allowed} were allowed."


def wave_seed(params: Mapping[str, object], query_id: int, *, drawn: int) -> int | None:
    """A seed of the wave's own where the request names one: the same seed in every wave would repeat its samples."""
    seed = params.get("seed")
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}:{query_id}:{drawn}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _labelled(samples: tuple[Sample, ...], spec: VerifierSpec | None) -> tuple[Sample, ...]:
    return tuple(label(sample, spec) for sample in samples)
