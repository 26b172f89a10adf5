"""Money is held before tokens are made, and every nano-dollar that moves is in an entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from models.tables import Attempt, Batch, CapPeriod, Entry, SampleRow, Tenant, Wave
from scheduler import ledger
from scheduler.errors import Cancelled, CapReached, LeaseLost
from scheduler.ledger import Funded, Reservation, Settlement, WaveRequest
from scheduler.states import AttemptState, BatchState
from scheduler.types import Usage
from tests.factories import NOW, add_batch, add_cap, add_query, add_tenant, fund, new_sessions

# One prompt token costs 1 nano-dollar, one completion token 2 (tests.factories).
PROMPT = 10
WAVE_OF_4 = PROMPT + 4 * 50 * 2


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


@pytest.fixture
def tenant(session: Session) -> Tenant:
    return add_tenant(session)


@pytest.fixture
def funded(session: Session, tenant: Tenant) -> Funded:
    return fund(session, add_query(session, add_batch(session, tenant)))


def asked(funded: Funded, samples: int = 4, tokens_max: int = 50, floor: int = 20) -> WaveRequest:
    return WaveRequest(funded=funded, samples=samples, tokens_max=tokens_max, tokens_floor=floor, prompt_tokens=PROMPT)


def reserve(session: Session, funded: Funded, samples: int = 4, floor: int = 20, now: datetime = NOW) -> Reservation:
    return ledger.reserve(session, asked(funded, samples, floor=floor), now)


def settle(session: Session, funded: Funded, hold: Reservation, completion: int, now: datetime = NOW) -> None:
    usage = Usage(prompt=PROMPT, completion=completion)
    ledger.settle(session, Settlement(funded=funded, wave_id=hold.wave_id, usage=usage, latency_s=1.0), now)


def test_a_wave_holds_its_prompt_and_every_token_it_may_make(session: Session, tenant: Tenant, funded: Funded) -> None:
    hold = reserve(session, funded)

    session.refresh(tenant)
    assert hold.held_nanousd == WAVE_OF_4
    assert (tenant.held_nanousd, tenant.spent_nanousd) == (WAVE_OF_4, 0)


def test_settling_posts_the_cost_and_releases_the_rest(session: Session, tenant: Tenant, funded: Funded) -> None:
    hold = reserve(session, funded)

    settle(session, funded, hold, completion=70)

    session.refresh(tenant)
    assert (tenant.held_nanousd, tenant.spent_nanousd) == (0, PROMPT + 70 * 2)
    kinds = session.scalars(select(Entry.kind).order_by(Entry.id)).all()
    assert kinds == ["reserve", "settle", "release"]
    assert session.scalar(select(func.sum(Entry.held_delta_nanousd))) == 0


def test_a_wave_that_does_not_fit_shrinks_to_fewer_samples(session: Session, tenant: Tenant, funded: Funded) -> None:
    add_cap(session, tenant, PROMPT + 2 * 50 * 2 + 99)

    hold = reserve(session, funded, samples=4)

    assert (hold.samples, hold.tokens_max) == (2, 50)


def test_a_single_sample_that_does_not_fit_shrinks_to_fewer_tokens(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    add_cap(session, tenant, PROMPT + 30 * 2 + 1)

    hold = reserve(session, funded, samples=4)

    assert (hold.samples, hold.tokens_max) == (1, 30)


def test_what_does_not_fit_at_all_is_refused_and_moves_nothing(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    cap = add_cap(session, tenant, PROMPT + 20 * 2 - 1)

    with pytest.raises(CapReached) as refusal:
        reserve(session, funded)

    session.refresh(tenant)
    assert refusal.value.attributes["scope"] == ledger.name_of(cap)
    assert refusal.value.attributes["need_nanousd"] == PROMPT + 20 * 2
    assert tenant.held_nanousd == 0
    assert session.scalar(select(func.count()).select_from(Entry)) == 0


def test_held_money_counts_against_the_cap(session: Session, tenant: Tenant, funded: Funded) -> None:
    add_cap(session, tenant, WAVE_OF_4 + PROMPT + 20 * 2 - 1)
    reserve(session, funded)

    with pytest.raises(CapReached):
        reserve(session, funded)


def test_released_money_can_be_held_again(session: Session, tenant: Tenant, funded: Funded) -> None:
    add_cap(session, tenant, WAVE_OF_4 + PROMPT)
    hold = reserve(session, funded)
    settle(session, funded, hold, completion=0)

    again = reserve(session, funded)

    assert again.samples == 4


@pytest.mark.parametrize("scope", ["query", "batch"])
def test_the_query_and_the_batch_have_limits_of_their_own(session: Session, tenant: Tenant, scope: str) -> None:
    batch = add_batch(session, tenant, limit_nanousd=40 if scope == "batch" else None)
    query = add_query(session, batch, limit_nanousd=40 if scope == "query" else None)
    funded = fund(session, query)

    with pytest.raises(CapReached) as refusal:
        reserve(session, funded)

    assert refusal.value.attributes["scope"] == scope
    assert refusal.value.attributes["cap_period_id"] is None


def test_a_cap_on_another_model_does_not_count(session: Session, tenant: Tenant, funded: Funded) -> None:
    add_cap(session, tenant, 1, model="another")

    assert reserve(session, funded).samples == 4


def test_a_new_day_is_a_new_period(session: Session, tenant: Tenant, funded: Funded) -> None:
    add_cap(session, tenant, WAVE_OF_4, period="day")
    reserve(session, funded)

    tomorrow = reserve(session, funded, floor=50, now=NOW + timedelta(days=1))

    assert tomorrow.samples == 4
    assert session.scalar(select(func.count()).select_from(CapPeriod)) == 2


def test_money_counts_to_the_period_in_which_it_was_held(session: Session, tenant: Tenant, funded: Funded) -> None:
    add_cap(session, tenant, WAVE_OF_4, period="day")
    hold = reserve(session, funded)

    settle(session, funded, hold, completion=9, now=NOW + timedelta(days=1))

    [period] = session.scalars(select(CapPeriod)).all()
    session.refresh(period)
    assert (period.held_nanousd, period.spent_nanousd) == (0, PROMPT + 18)


def test_settling_twice_is_refused(session: Session, funded: Funded) -> None:
    hold = reserve(session, funded)
    settle(session, funded, hold, completion=5)

    with pytest.raises(LeaseLost), session.begin_nested():
        settle(session, funded, hold, completion=5)


def test_a_cost_above_the_hold_is_booked_in_full(session: Session, tenant: Tenant, funded: Funded) -> None:
    hold = reserve(session, funded, samples=1)

    settle(session, funded, hold, completion=500)

    session.refresh(tenant)
    assert (tenant.held_nanousd, tenant.spent_nanousd) == (0, PROMPT + 1000)


def test_an_attempt_taken_from_its_worker_reserves_nothing(session: Session, tenant: Tenant, funded: Funded) -> None:
    session.execute(update(Attempt).where(Attempt.id == funded.attempt_id).values(state=AttemptState.LOST))

    with pytest.raises(LeaseLost), session.begin_nested():
        reserve(session, funded)

    session.refresh(tenant)
    assert tenant.held_nanousd == 0


def test_another_worker_reserves_nothing_on_this_attempt(session: Session, funded: Funded) -> None:
    with pytest.raises(LeaseLost), session.begin_nested():
        reserve(session, replace(funded, worker_id="zombie"))


def test_a_batch_that_is_being_cancelled_starts_no_wave(session: Session, funded: Funded) -> None:
    session.execute(update(Batch).values(state=BatchState.CANCELLING))

    with pytest.raises(Cancelled):
        reserve(session, funded)


def test_a_dead_workers_wave_is_settled_at_what_it_reported(session: Session, tenant: Tenant, funded: Funded) -> None:
    hold = reserve(session, funded)
    reported = {"prompt_tokens": PROMPT, "completion_tokens": 7}
    session.execute(update(Wave).where(Wave.id == hold.wave_id).values(**reported))

    cost = ledger.expire(session, hold.wave_id, NOW)

    session.refresh(tenant)
    assert cost == PROMPT + 14
    assert (tenant.held_nanousd, tenant.spent_nanousd) == (0, cost)
    [sample] = session.scalars(select(SampleRow)).all()
    assert (sample.finish_reason, sample.tokens) == ("lost", 7)
    assert session.scalars(select(Entry.kind).order_by(Entry.id)).all() == ["reserve", "settle", "expire"]


def test_waves_admitted_together_share_what_a_cap_leaves_in_order(session: Session, tenant: Tenant) -> None:
    add_cap(session, tenant, WAVE_OF_4 + PROMPT + 2 * 50 * 2)
    batch = add_batch(session, tenant)
    together = [asked(fund(session, add_query(session, batch))) for _ in range(3)]

    first, second, third = ledger.reserve_all(session, together, NOW)

    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    assert (first.samples, second.samples) == (4, 2)
    assert isinstance(third, CapReached)


def test_a_wave_settled_twice_in_one_go_is_paid_once(session: Session, tenant: Tenant, funded: Funded) -> None:
    hold = reserve(session, funded)
    settlement = Settlement(
        funded=funded, wave_id=hold.wave_id, usage=Usage(prompt=PROMPT, completion=5), latency_s=1.0
    )

    once, again = ledger.settle_all(session, [settlement, settlement], NOW)

    session.refresh(tenant)
    assert once == ()
    assert isinstance(again, LeaseLost)
    assert tenant.spent_nanousd == PROMPT + 10
