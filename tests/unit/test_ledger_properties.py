"""For any sequence of holds, settlements, losses, caps, turns and corrections: no limit is passed, the books balance.

Messages are repeated and come in any order. Two things may take a limit over what it allows, and are modelled exactly:
a server that bills more than was held, and a price that is corrected upwards. Nothing else may, and after them no wave
starts under that limit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import Batch, Cap, CapPeriod, PriceRow, QueryRow, Tenant, Wave
from scheduler import caps, ledger
from scheduler.audit import discrepancies
from scheduler.core.periods import Period
from scheduler.corrections import NewPrice, correct_price
from scheduler.errors import CapReached, LeaseLost
from scheduler.ledger import Funded, Reservation, Settlement, WaveRequest
from scheduler.prices import set_price
from scheduler.types import Sample, Usage
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, fund, new_sessions
from tests.services import PostgresServer

PROMPT = 5


@dataclass(frozen=True, kw_only=True)
class Held:
    """A wave as the model knows it; `tokens` are billed once it is closed."""

    funded: Funded
    reservation: Reservation
    reserved_at: datetime
    price: NewPrice
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A correction as the model knows it."""

    from_at: datetime
    to_at: datetime | None
    price: NewPrice

    def covers(self, wave: Held) -> bool:
        return self.from_at <= wave.reserved_at and (self.to_at is None or wave.reserved_at < self.to_at)


class Ledger(RuleBasedStateMachine):
    """A tenant whose caps and prices come, change and go while waves of several queries are held, settled and lost."""

    holds = Bundle("holds")
    url = "sqlite://"

    @initialize(batch_limit=st.none() | st.integers(50, 600))
    def open(self, batch_limit: int | None) -> None:
        self.stack = ExitStack()
        sessions = self.stack.enter_context(new_sessions(self.url))
        self.session: Session = self.stack.enter_context(sessions())
        self.now = NOW
        self.tenant = add_tenant(self.session, timezone="Pacific/Auckland")
        batch = add_batch(self.session, self.tenant, limit_nanousd=batch_limit)
        self.funded: list[Funded] = [
            fund(self.session, add_query(self.session, batch, limit_nanousd=limit)) for limit in (None, 300, 90)
        ]
        self.waves: dict[int, Held] = {}
        self.corrections: list[Corrected] = []
        self.over: dict[tuple[str, Any], int] = {}
        self.is_excused = False

    @rule(
        target=holds,
        query=st.integers(0, 2),
        samples=st.integers(1, 6),
        tokens=st.integers(1, 30),
        floor=st.integers(1, 30),
    )
    def reserve(self, query: int, samples: int, tokens: int, floor: int) -> Any:
        """A worker holds a wave, by the price it was told when it began, be it mistaken or not."""
        funded = self.funded[query]
        request = WaveRequest(
            funded=funded, samples=samples, tokens_max=tokens, tokens_floor=min(tokens, floor), prompt_tokens=PROMPT
        )
        try:
            with self.session.begin_nested():
                hold = ledger.reserve(self.session, request, self.now)
        except CapReached:
            return multiple()
        self.session.expire_all()
        for cap in ledger.live_caps(self.session, self.tenant.id):
            assert ledger.left_under(self.session, cap, self.tenant.timezone, self.now) >= 0
        assert hold.samples <= samples
        assert hold.tokens_max <= tokens
        row = self.session.get_one(PriceRow, self.session.get_one(Wave, hold.wave_id).price_id)
        price = NewPrice(
            prompt_nanousd=row.prompt_nanousd,
            cached_nanousd=row.cached_nanousd,
            completion_nanousd=row.completion_nanousd,
        )
        self.waves[hold.wave_id] = Held(funded=funded, reservation=hold, reserved_at=self.now, price=price)
        return hold.wave_id

    @rule(wave_ids=st.lists(holds, min_size=1, max_size=4), share=st.floats(0, 1.4), unattributed=st.booleans())
    def settle(self, wave_ids: list[int], share: float, unattributed: bool) -> None:
        """Waves are settled together; one that is closed already, or comes twice, is refused and changes nothing."""
        settlements = []
        for wave_id in wave_ids:
            wave = self.waves[wave_id]
            tokens = int(share * wave.reservation.samples * wave.reservation.tokens_max)
            samples = () if unattributed else (Sample(text="x", tokens=tokens),)
            usage = Usage(prompt=PROMPT, completion=tokens)
            settlements.append(
                Settlement(funded=wave.funded, wave_id=wave_id, usage=usage, latency_s=0.1, samples=samples)
            )
        results = ledger.settle_all(self.session, settlements, self.now)
        for settlement, result in zip(settlements, results, strict=True):
            was_open = self.waves[settlement.wave_id].tokens is None
            assert isinstance(result, LeaseLost) != was_open
            if was_open:
                self._close(settlement.wave_id, settlement.usage.completion)

    @rule(wave_id=holds, reported=st.integers(0, 30))
    def lose_worker(self, wave_id: int, reported: int) -> None:
        """A dead worker's wave is closed at what was reported; its own settlement may still come, and is refused."""
        wave = self.waves[wave_id]
        tokens = min(reported, wave.reservation.samples * wave.reservation.tokens_max)
        self.session.execute(
            update(Wave)
            .where(Wave.id == wave_id, Wave.state == "held")
            .values(prompt_tokens=PROMPT, completion_tokens=tokens)
        )
        try:
            with self.session.begin_nested():
                ledger.expire(self.session, wave_id, self.now)
        except LeaseLost:
            assert wave.tokens is not None, "a wave that is held was not closed"
            return
        assert wave.tokens is None, "a wave was closed twice"
        self._close(wave_id, tokens)

    @rule(period=st.sampled_from(list(Period)), limit=st.integers(1, 900), on_model=st.booleans())
    def set_cap(self, period: Period, limit: int, on_model: bool) -> None:
        """A cap may be set or lowered under what is spent and held already."""
        model = MODEL if on_model else None
        caps.set_cap(self.session, self.tenant, limit_nanousd=limit, period=period, model=model, now=self.now)
        self.is_excused = True

    @rule(data=st.data())
    def remove_cap(self, data: st.DataObject) -> None:
        live = sorted(ledger.live_caps(self.session, self.tenant.id), key=lambda cap: (cap.period, cap.model or ""))
        if live:
            caps.remove_cap(self.session, data.draw(st.sampled_from(live)).id, now=self.now)

    @rule(hours=st.integers(1, 400))
    def pass_time(self, hours: int) -> None:
        """Periods turn."""
        self.now += timedelta(hours=hours)

    @rule(prompt=st.integers(0, 3), completion=st.integers(0, 4))
    def set_price(self, prompt: int, completion: int) -> None:
        """A newer price ends what corrections say of the time to come."""
        self.now += timedelta(seconds=1)
        set_price(self.session, MODEL, prompt_nanousd=prompt, completion_nanousd=completion, now=self.now)
        self.corrections = [one if one.to_at is not None else replace(one, to_at=self.now) for one in self.corrections]

    @rule(
        prompt=st.integers(0, 3),
        completion=st.integers(0, 4),
        hours=st.integers(0, 500),
        lasted=st.none() | st.integers(1, 500),
        times=st.integers(1, 2),
    )
    def correct_price(self, prompt: int, completion: int, hours: int, lasted: int | None, times: int) -> None:
        """Of the past to its end or to now and on; asking twice is asking once."""
        from_at = self.now - timedelta(hours=hours)
        to_at = None if lasted is None or lasted > hours else from_at + timedelta(hours=lasted)
        price = NewPrice(prompt_nanousd=prompt, cached_nanousd=prompt, completion_nanousd=completion)
        for number in range(times):
            report = correct_price(self.session, MODEL, price, from_at=from_at, to_at=to_at, now=self.now)
            assert number == 0 or report.tenants == ()
        self.corrections.append(Corrected(from_at=from_at, to_at=to_at, price=price))
        self.is_excused = True

    @invariant()
    def nothing_but_the_excused_goes_further_over_a_limit(self) -> None:
        self.session.expire_all()
        over = {scope: used - limit for scope, used, limit in self._limits() if used > limit}
        if not self.is_excused:
            for scope, excess in over.items():
                assert excess <= self.over.get(scope, 0), scope
        self.over, self.is_excused = over, False

    @invariant()
    def books_balance(self) -> None:
        assert [str(found) for found in discrepancies(self.session)] == []

    @invariant()
    def what_is_spent_is_samples_times_price(self) -> None:
        spent = sum(self._cost(wave) for wave in self.waves.values() if wave.tokens is not None)
        held = sum(wave.reservation.held_nanousd for wave in self.waves.values() if wave.tokens is None)
        tenant = self.session.get_one(Tenant, self.tenant.id, populate_existing=True)
        assert (tenant.spent_nanousd, tenant.held_nanousd) == (spent, held)

    def _limits(self) -> list[tuple[tuple[str, Any], int, int]]:
        owners = [*self.session.scalars(select(Batch)), *self.session.scalars(select(QueryRow))]
        of_caps = self.session.execute(
            select(CapPeriod, Cap.limit_nanousd).join(Cap, Cap.id == CapPeriod.cap_id).where(Cap.removed_at.is_(None))
        )
        return [
            *(
                ((type(one).__name__, one.id), one.spent_nanousd + one.held_nanousd, one.limit_nanousd)
                for one in owners
                if one.limit_nanousd is not None
            ),
            *((("cap", one.id), one.spent_nanousd + one.held_nanousd, limit) for one, limit in of_caps),
        ]

    def _close(self, wave_id: int, tokens: int) -> None:
        self.waves[wave_id] = replace(self.waves[wave_id], tokens=tokens)
        if self._cost(self.waves[wave_id]) > self.waves[wave_id].reservation.held_nanousd:
            self.is_excused = True

    def _cost(self, wave: Held) -> int:
        covering = [one.price for one in self.corrections if one.covers(wave)]
        price = covering[-1] if covering else wave.price
        return PROMPT * price.prompt_nanousd + (wave.tokens or 0) * price.completion_nanousd

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.session.rollback()
            self.stack.close()


def runs(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_the_invariant_holds_on_sqlite() -> None:
    run_state_machine_as_test(Ledger, settings=runs(12, 25))


def test_the_invariant_holds_on_postgresql(new_database: Callable[[], str], postgres: PostgresServer) -> None:
    """Examples share a database and are undone: nothing is committed."""
    url = new_database()
    run_state_machine_as_test(type("OnPostgres", (Ledger,), {"url": url}), settings=runs(6, 20))
