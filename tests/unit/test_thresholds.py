"""A cap's soft limit and its first refusal are told once a period, with what was left."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import Alert, QueryRow, Tenant, Wave
from scheduler import ledger, planning, recovery
from scheduler.alerts import raise_alert
from scheduler.caps import CapStatus, list_caps, remove_cap, set_cap
from scheduler.core.periods import Period
from scheduler.drafts import draft_plans
from scheduler.errors import CapReached, InvalidRequest
from scheduler.ledger import Funded, Reservation, Settlement, WaveRequest
from scheduler.prediction import FixedPriors
from scheduler.settings import Settings
from scheduler.states import QueryState
from scheduler.types import AlertKind, Sample, Usage
from tests.factories import NOW, add_batch, add_query, add_tenant, add_worker, fund, new_sessions

HELD, COST = 110, 50
"""Of `reserve` below, and of its settlement with 20 tokens: 10 prompt tokens at 1 and 20 of at most 50 at 2."""
TOMORROW = NOW + timedelta(days=1)


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


def spend(session: Session, funded: Funded, now: datetime = NOW) -> None:
    """Reserve and settle one wave, which costs COST."""
    hold = reserve(session, funded, now)
    usage, samples = Usage(prompt=10, completion=20), (Sample(text="21", tokens=20),)
    done = Settlement(funded=funded, wave_id=hold.wave_id, usage=usage, latency_s=1.0, samples=samples)
    ledger.settle(session, done, now)


def cap(session: Session, tenant: Tenant, limit: int, **values: Any) -> CapStatus:
    return set_cap(session, tenant, limit_nanousd=limit, period=Period.DAY, now=NOW, **values)


def alerts(session: Session, kind: AlertKind) -> list[Alert]:
    return list(session.scalars(select(Alert).where(Alert.kind == kind).order_by(Alert.created_at)))


def test_a_soft_limit_is_told_when_spending_crosses_it_and_once(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    made = cap(session, tenant, 10 * COST, soft=0.2)
    spend(session, funded)
    assert alerts(session, AlertKind.CAP_SOFT) == []

    for _ in range(3):
        spend(session, funded)

    [alert] = alerts(session, AlertKind.CAP_SOFT)
    assert (alert.subject, alert.tenant_id) == (made.id, tenant.id)
    assert "soft limit of 20%" in alert.message
    assert list_caps(session, tenant.id, NOW)[0].soft_alerted_at == NOW


def test_the_next_period_tells_of_the_soft_limit_again(session: Session, tenant: Tenant, funded: Funded) -> None:
    cap(session, tenant, 10 * COST, soft=0.1)

    for now in (NOW, TOMORROW, TOMORROW):
        spend(session, funded, now)

    assert [alert.created_at for alert in alerts(session, AlertKind.CAP_SOFT)] == [NOW, TOMORROW]


def test_money_that_is_only_held_crosses_no_soft_limit(session: Session, tenant: Tenant, funded: Funded) -> None:
    cap(session, tenant, 10 * COST, soft=0.1)

    reserve(session, funded)

    assert alerts(session, AlertKind.CAP_SOFT) == []


def test_a_dead_workers_bill_crosses_a_soft_limit_too(session: Session, tenant: Tenant, funded: Funded) -> None:
    cap(session, tenant, 10 * COST, soft=0.1)
    hold = reserve(session, funded)
    session.get_one(Wave, hold.wave_id).completion_tokens = 25
    session.flush()

    ledger.expire(session, hold.wave_id, NOW)

    assert len(alerts(session, AlertKind.CAP_SOFT)) == 1


def test_a_cap_set_or_lowered_under_what_is_spent_already_tells_at_once(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    spend(session, funded)
    cap(session, tenant, 10 * COST, soft=0.5)
    assert alerts(session, AlertKind.CAP_SOFT) == []

    cap(session, tenant, COST)

    assert len(alerts(session, AlertKind.CAP_SOFT)) == 1


def test_a_soft_limit_stays_when_the_amount_changes_and_goes_when_it_is_removed(
    session: Session, tenant: Tenant
) -> None:
    cap(session, tenant, 100, soft=0.8)

    kept = cap(session, tenant, 200)
    removed = cap(session, tenant, 200, no_soft=True)

    assert (kept.soft, removed.soft) == (0.8, None)


def test_setting_and_removing_a_soft_limit_at_once_is_refused(session: Session, tenant: Tenant) -> None:
    with pytest.raises(InvalidRequest, match="at once"):
        cap(session, tenant, 100, soft=0.8, no_soft=True)


def test_the_first_refusal_keeps_what_was_unspent_and_is_told_once(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    made = cap(session, tenant, COST + HELD + 7)
    spend(session, funded)
    reserve(session, funded)

    for _ in range(2):
        with pytest.raises(CapReached):
            reserve(session, funded)

    [status] = list_caps(session, tenant.id, NOW)
    assert (status.first_refused_at, status.phantom_block_nanousd, status.held_at_refusal_nanousd) == (NOW, 7, HELD)
    [alert] = alerts(session, AlertKind.CAP_REACHED)
    assert alert.subject == made.id
    assert '"phantom_block_nanousd": 7' in alert.details_json


def test_a_refusal_in_the_next_period_is_another(session: Session, tenant: Tenant, funded: Funded) -> None:
    cap(session, tenant, HELD - 1)

    for now in (NOW, TOMORROW):
        with pytest.raises(CapReached):
            reserve(session, funded, now)

    assert len(alerts(session, AlertKind.CAP_REACHED)) == 2


def test_a_query_parked_before_it_asked_for_money_was_refused_too(session: Session, tenant: Tenant) -> None:
    add_worker(session)
    query = add_query(session, add_batch(session, tenant))
    cap(session, tenant, 5)

    fund_all(session, [query])

    assert query.state == QueryState.PARKED
    [status] = list_caps(session, tenant.id, NOW)
    assert status.phantom_block_nanousd == 5
    assert len(alerts(session, AlertKind.CAP_REACHED)) == 1


def test_a_cap_lowered_under_what_is_spent_and_held_stops_new_waves_only(
    session: Session, tenant: Tenant, funded: Funded
) -> None:
    cap(session, tenant, 10 * HELD)
    spend(session, funded)
    hold = reserve(session, funded)

    lowered = cap(session, tenant, COST)

    assert lowered.left_nanousd == -HELD
    with pytest.raises(CapReached):
        reserve(session, funded)
    done = Settlement(funded=funded, wave_id=hold.wave_id, usage=Usage(prompt=10, completion=20), latency_s=1.0)
    assert ledger.settle(session, done, NOW) == ()
    [after] = list_caps(session, tenant.id, NOW)
    assert (after.spent_nanousd, after.held_nanousd, after.phantom_block_nanousd) == (2 * COST, 0, 0)


@pytest.mark.parametrize("way", ["raised", "removed", "turned"])
def test_a_parked_query_goes_on_when_its_cap_gives_way(session: Session, tenant: Tenant, way: str) -> None:
    add_worker(session)
    query = add_query(session, add_batch(session, tenant))
    made = cap(session, tenant, 800)
    spend_on = fund(session, add_query(session, add_batch(session, tenant)))
    for _ in range(10):
        spend(session, spend_on)
    fund_all(session, [query])
    assert query.state == QueryState.PARKED
    assert recovery.resume_parked(session, NOW, limit=10) == 0

    if way == "raised":
        cap(session, tenant, 10**6)
    elif way == "removed":
        remove_cap(session, made.id, NOW)
    resumed = recovery.resume_parked(session, TOMORROW if way == "turned" else NOW, limit=10)

    session.refresh(query)
    assert (resumed, query.state) == (1, QueryState.QUEUED)


def test_one_alert_is_written_per_kind_subject_and_period(session: Session) -> None:
    def unbalanced(now: datetime, **values: Any) -> bool:
        return raise_alert(session, AlertKind.LEDGER_UNBALANCED, "ledger", message="It is off.", now=now, **values)

    assert unbalanced(NOW)
    assert not unbalanced(NOW)
    assert unbalanced(TOMORROW)
    assert unbalanced(NOW, period="another")
    assert len(alerts(session, AlertKind.LEDGER_UNBALANCED)) == 3


def fund_all(session: Session, queries: list[QueryRow]) -> None:
    settings = Settings()
    drafts = draft_plans(session, queries, FixedPriors(), settings, NOW)
    planning.fund_window(session, drafts, NOW)
    session.expire_all()
