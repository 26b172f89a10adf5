"""Caps count all that a tenant has spent and holds in the period, also what came before the cap."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Cap, CapPeriod, Entry, Tenant
from scheduler import ledger
from scheduler.audit import discrepancies
from scheduler.caps import CapStatus, list_caps, remove_cap, set_cap
from scheduler.core.periods import Period
from scheduler.errors import CapReached, InvalidRequest, ModelUnpriced, NotFound
from scheduler.ledger import Funded, Reservation, Settlement, WaveRequest
from scheduler.types import Sample, Usage
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, fund, new_sessions

LIMIT = 10**6
YESTERDAY = NOW - timedelta(days=1)
HELD, COST = 110, 50
"""Of `reserve` below, and of its settlement with 20 tokens: 10 prompt tokens at 1 and 20 of at most 50 at 2."""


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


def reserve(session: Session, funded: Funded, now: datetime = NOW) -> Reservation:
    request = WaveRequest(funded=funded, samples=1, tokens_max=50, tokens_floor=50, prompt_tokens=10)
    return ledger.reserve(session, request, now)


def settle(session: Session, funded: Funded, hold: Reservation, now: datetime = NOW) -> None:
    samples = (Sample(text="21", tokens=20),)
    usage = Usage(prompt=10, completion=20)
    ledger.settle(
        session,
        Settlement(funded=funded, wave_id=hold.wave_id, usage=usage, latency_s=1.0, samples=samples),
        now,
    )


def cap(session: Session, tenant: Tenant, limit: int = LIMIT, period: Period = Period.DAY) -> CapStatus:
    return set_cap(session, tenant, limit_nanousd=limit, period=period, now=NOW)


def test_a_new_cap_counts_what_was_spent_and_is_held_before_it(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    settle(session, funded, reserve(session, funded))
    reserve(session, funded)

    status = cap(session, tenant)

    assert (status.spent_nanousd, status.held_nanousd) == (COST, HELD)
    assert status.left_nanousd == LIMIT - COST - HELD


def test_a_wave_in_flight_when_its_cap_was_made_moves_from_held_to_spent(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    hold = reserve(session, funded)
    cap(session, tenant)

    settle(session, funded, hold)

    [status] = list_caps(session, tenant.id, NOW)
    assert (status.spent_nanousd, status.held_nanousd) == (COST, 0)


@pytest.mark.parametrize("period", list(Period))
def test_what_was_spent_yesterday_counts_where_yesterday_is_in_the_period(
    session: Session, tenant: Tenant, funded: Funded, period: Period
) -> None:
    settle(session, funded, reserve(session, funded, YESTERDAY), YESTERDAY)

    status = cap(session, tenant, period=period)

    assert status.spent_nanousd == (0 if period is Period.DAY else COST)


def test_a_wave_held_since_yesterday_counts_to_yesterday_when_it_is_settled(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    hold = reserve(session, funded, YESTERDAY)
    status = cap(session, tenant)

    settle(session, funded, hold)

    [after] = list_caps(session, tenant.id, NOW)
    assert (status.held_nanousd, after.held_nanousd, after.spent_nanousd) == (0, 0, 0)
    assert list(discrepancies(session)) == []


def test_what_another_hosts_clock_puts_into_the_next_period_is_counted_there(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    tomorrow = NOW + timedelta(days=1)
    settle(session, funded, reserve(session, funded, tomorrow), tomorrow)

    cap(session, tenant)

    [status] = list_caps(session, tenant.id, tomorrow)
    assert status.spent_nanousd == COST
    assert list(discrepancies(session)) == []


def test_a_cap_on_a_model_counts_that_model_only(session: Session, tenant: Tenant, funded: Funded) -> None:
    settle(session, funded, reserve(session, funded))
    session.add(
        Entry(
            key="other",
            kind="settle",
            tenant_id=tenant.id,
            batch_id=funded.batch_id,
            query_id=funded.query_id,
            model="other",
            price_id=funded.price.id,
            spent_delta_nanousd=999,
            effective_at=NOW,
            created_at=NOW,
        )
    )

    status = set_cap(session, tenant, limit_nanousd=LIMIT, period=Period.TOTAL, model=MODEL, now=NOW)

    assert (status.model, status.spent_nanousd) == (MODEL, COST)


def test_a_cap_below_what_is_spent_stops_the_next_wave(session: Session, tenant: Tenant, funded: Funded) -> None:
    settle(session, funded, reserve(session, funded))

    status = cap(session, tenant, limit=COST - 1)

    assert status.left_nanousd == -1
    with pytest.raises(CapReached):
        reserve(session, funded)


def test_setting_a_cap_again_changes_it_in_place(session: Session, tenant: Tenant, funded: Funded) -> None:
    first = cap(session, tenant)
    reserve(session, funded)

    second = set_cap(session, tenant, limit_nanousd=2 * LIMIT, period=Period.DAY, soft=0.5, now=NOW)

    assert (second.id, second.limit_nanousd, second.soft, second.held_nanousd) == (first.id, 2 * LIMIT, 0.5, HELD)
    assert session.scalar(select(func.count()).select_from(CapPeriod)) == 1


def test_caps_of_other_periods_and_models_are_caps_of_their_own(session: Session, tenant: Tenant) -> None:
    cap(session, tenant)
    cap(session, tenant, period=Period.MONTH)
    set_cap(session, tenant, limit_nanousd=LIMIT, period=Period.DAY, model=MODEL, now=NOW)

    assert session.scalar(select(func.count()).select_from(Cap)) == 3


def test_a_removed_cap_no_longer_counts_and_set_again_has_missed_nothing(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    first = cap(session, tenant)
    hold = reserve(session, funded)
    remove_cap(session, first.id, NOW)
    settle(session, funded, hold)

    second = cap(session, tenant)

    assert second.id != first.id
    assert (second.spent_nanousd, second.held_nanousd) == (COST, 0)


def test_a_removed_cap_is_removed_once(session: Session, tenant: Tenant) -> None:
    made = cap(session, tenant)
    remove_cap(session, made.id, NOW)

    with pytest.raises(NotFound):
        remove_cap(session, made.id, NOW)


def test_a_cap_on_a_model_without_a_price_is_refused(session: Session, tenant: Tenant) -> None:
    with pytest.raises(ModelUnpriced, match="allotd price set"):
        set_cap(session, tenant, limit_nanousd=LIMIT, period=Period.DAY, model="unpriced", now=NOW)


def test_a_cap_where_nothing_has_a_price_is_refused(session: Session) -> None:
    tenant = Tenant(id="tenant_1", name="early", created_at=NOW)
    session.add(tenant)
    session.flush()

    with pytest.raises(ModelUnpriced, match="No model"):
        cap(session, tenant)


@pytest.mark.parametrize("soft", [0.0, -0.1, 1.1, float("nan")])
def test_a_soft_limit_is_a_share(session: Session, tenant: Tenant, soft: float) -> None:
    with pytest.raises(InvalidRequest, match="soft"):
        set_cap(session, tenant, limit_nanousd=LIMIT, period=Period.DAY, soft=soft, now=NOW)


def test_a_cap_turns_at_midnight_where_the_tenant_lives(session: Session) -> None:
    tenant = add_tenant(session, "tokyo", timezone="Asia/Tokyo")

    status = cap(session, tenant)

    assert status.turns_at == datetime(2026, 3, 15, 15, tzinfo=NOW.tzinfo)  # midnight of the 16th in Tokyo


def test_the_next_period_shows_nothing_spent_before_anything_is(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    cap(session, tenant)
    settle(session, funded, reserve(session, funded))

    [status] = list_caps(session, tenant.id, NOW + timedelta(days=1))

    assert (status.spent_nanousd, status.held_nanousd) == (0, 0)


def test_a_tenant_sees_its_own_caps_and_an_admin_all(session: Session, tenant: Tenant) -> None:
    cap(session, tenant)
    cap(session, add_tenant(session, "other"))

    own, every = list_caps(session, tenant.id, NOW), list_caps(session, None, NOW)

    assert [status.tenant_name for status in own] == ["acme"]
    assert [status.tenant_name for status in every] == ["acme", "other"]
