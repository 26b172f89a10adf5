"""For any sequence of reserve, settle, expire and cap changes: no limit is passed, and the books balance."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.tables import Batch, QueryRow, Wave
from scheduler import caps, ledger
from scheduler.audit import discrepancies
from scheduler.core.periods import Period
from scheduler.errors import CapReached, LeaseLost
from scheduler.ledger import Funded, Reservation, Settlement, WaveRequest
from scheduler.types import Sample, Usage
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, fund, new_sessions

PROMPT = 5


class Ledger(RuleBasedStateMachine):
    """A tenant whose caps come, change and go while waves of several queries are held, settled, repeated and lost."""

    holds = Bundle("holds")

    @initialize(batch_limit=st.none() | st.integers(50, 600))
    def open(self, batch_limit: int | None) -> None:
        self.stack = ExitStack()
        sessions = self.stack.enter_context(new_sessions())
        self.session: Session = self.stack.enter_context(sessions())
        self.now = NOW
        self.tenant = add_tenant(self.session, timezone="Pacific/Auckland")
        batch = add_batch(self.session, self.tenant, limit_nanousd=batch_limit)
        self.funded: list[Funded] = [
            fund(self.session, add_query(self.session, batch, limit_nanousd=limit)) for limit in (None, 300, 90)
        ]

    @rule(
        target=holds,
        query=st.integers(0, 2),
        samples=st.integers(1, 6),
        tokens=st.integers(1, 30),
        floor=st.integers(1, 30),
    )
    def reserve(self, query: int, samples: int, tokens: int, floor: int) -> Any:
        funded = self.funded[query]
        try:
            with self.session.begin_nested():
                request = WaveRequest(
                    funded=funded,
                    samples=samples,
                    tokens_max=tokens,
                    tokens_floor=min(tokens, floor),
                    prompt_tokens=PROMPT,
                )
                hold = ledger.reserve(self.session, request, self.now)
        except CapReached:
            return multiple()
        self.session.expire_all()
        for cap in ledger.live_caps(self.session, self.tenant.id):
            assert ledger.left_under(self.session, cap, self.tenant.timezone, self.now) >= 0
        assert hold.samples <= samples
        assert hold.tokens_max <= tokens
        return funded, hold

    @rule(hold=holds, share=st.floats(0, 1), unattributed=st.booleans())
    def settle(self, hold: tuple[Funded, Reservation], share: float, unattributed: bool) -> None:
        """Settling what is settled already is refused and changes nothing."""
        funded, reservation = hold
        tokens = int(share * reservation.samples * reservation.tokens_max)
        samples = () if unattributed else (Sample(text="x", tokens=tokens),)
        settlement = Settlement(
            funded=funded,
            wave_id=reservation.wave_id,
            usage=Usage(prompt=PROMPT, completion=tokens),
            latency_s=0.1,
            samples=samples,
        )
        self._if_held(lambda: ledger.settle(self.session, settlement, self.now), reservation)

    @rule(hold=consumes(holds), reported=st.integers(0, 30))
    def lose_worker(self, hold: tuple[Funded, Reservation], reported: int) -> None:
        _, reservation = hold
        tokens = min(reported, reservation.samples * reservation.tokens_max)
        self.session.execute(
            update(Wave)
            .where(Wave.id == reservation.wave_id, Wave.state == "held")
            .values(prompt_tokens=PROMPT, completion_tokens=tokens)
        )
        self._if_held(lambda: ledger.expire(self.session, reservation.wave_id, self.now), reservation)

    @rule(period=st.sampled_from(list(Period)), limit=st.integers(1, 900), on_model=st.booleans())
    def set_cap(self, period: Period, limit: int, on_model: bool) -> None:
        caps.set_cap(
            self.session,
            self.tenant,
            limit_nanousd=limit,
            period=period,
            model=MODEL if on_model else None,
            now=self.now,
        )

    @rule(data=st.data())
    def remove_cap(self, data: st.DataObject) -> None:
        live = ledger.live_caps(self.session, self.tenant.id)
        if live:
            caps.remove_cap(self.session, data.draw(st.sampled_from(list(live))).id, now=self.now)

    @rule(hours=st.integers(1, 400))
    def pass_time(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @invariant()
    def nothing_passes_its_limit(self) -> None:
        """Caps can be lowered under what is spent already; the limits of batches and queries stand."""
        self.session.expire_all()
        for purse in (*self.session.scalars(select(Batch)), *self.session.scalars(select(QueryRow))):
            if purse.limit_nanousd is not None:
                assert purse.held_nanousd + purse.spent_nanousd <= purse.limit_nanousd

    @invariant()
    def books_balance(self) -> None:
        assert [str(d) for d in discrepancies(self.session)] == []

    def _if_held(self, step: Any, reservation: Reservation) -> None:
        before = self.session.get_one(Wave, reservation.wave_id, populate_existing=True).state
        if before == "held":
            step()
            return
        try:
            with self.session.begin_nested():
                step()
        except LeaseLost:
            return
        raise AssertionError("a wave was closed twice")

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
