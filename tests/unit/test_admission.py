"""A tenant's limits: what may wait, what may run, what may be asked in a minute, and when its days begin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Batch, CapPeriod, Entry, QueryRow, Tenant
from scheduler import caps, ledger
from scheduler.admission import room_of
from scheduler.audit import discrepancies
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.core.periods import Period
from scheduler.errors import CapReached, InvalidRequest, QueueFull
from scheduler.files import store_upload
from scheduler.intake import advance_intake, create_batch, create_interactive
from scheduler.ledger import WaveRequest
from scheduler.planning import choose_window
from scheduler.requests import ENDPOINT
from scheduler.settings import Settings
from scheduler.states import BatchState, QueryState
from scheduler.tenants import change_tenant, disable_tenant, enable_tenant
from scheduler.types import Sample, Usage
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, add_worker, fund, new_sessions

SETTINGS = Settings(window_size=16)
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 10}


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


def submitted(session: Session, tenant: Tenant, lines: int) -> Batch:
    """A batch of so many lines, taken in."""
    content = b"\n".join(
        json.dumps({"custom_id": str(i), "method": "POST", "url": ENDPOINT, "body": BODY}).encode()
        for i in range(lines)
    )
    file = store_upload(session, tenant.id, "a", "batch", [content], bytes_max=10**7, now=NOW)
    batch = create_batch(session, tenant.id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)
    while not advance_intake(session, batch.id, SETTINGS, NOW, 3):
        pass
    session.refresh(batch)
    return batch


def waiting(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(QueryRow)) or 0


def test_a_batch_that_fits_into_the_queue_is_taken_whole_and_the_next_one_refused_at_once(session: Session) -> None:
    tenant = add_tenant(session, queued_max=5)

    assert submitted(session, tenant, 5).state == BatchState.IN_PROGRESS
    with pytest.raises(QueueFull, match="5 of your queries wait and at most 5 may"):
        submitted(session, tenant, 1)


def test_a_batch_that_does_not_fit_fails_as_a_whole_and_says_why(session: Session) -> None:
    tenant = add_tenant(session, queued_max=5)
    submitted(session, tenant, 1)

    batch = submitted(session, tenant, 8)

    [error] = json.loads(batch.errors_json or "{}")["data"]
    assert (batch.state, error["code"], waiting(session)) == (BatchState.FAILED, "queue_full", 1)
    assert "more than 5 of your queries would wait" in error["message"]


def test_a_chat_counts_into_the_queue_too(session: Session) -> None:
    tenant = add_tenant(session, queued_max=2)
    other = add_tenant(session, "other")

    for _ in range(2):
        create_interactive(session, tenant.id, BODY, now=NOW)
    with pytest.raises(QueueFull):
        create_interactive(session, tenant.id, BODY, now=NOW)

    assert create_interactive(session, other.id, BODY, now=NOW)


def test_what_has_ended_or_runs_makes_room_in_the_queue(session: Session) -> None:
    tenant = add_tenant(session, queued_max=1)
    batch = add_batch(session, tenant)
    for state in (QueryState.ANSWERED, QueryState.FAILED, QueryState.RUNNING, QueryState.PLANNED):
        add_query(session, batch, state=state)

    assert create_interactive(session, tenant.id, BODY, now=NOW)


def test_a_repeated_idempotency_key_is_answered_although_the_queue_is_full(session: Session) -> None:
    tenant = add_tenant(session, queued_max=1)
    file = store_upload(session, tenant.id, "a", "batch", [b"{}"], bytes_max=10, now=NOW)
    ask = {"input_file_id": file.id, "endpoint": ENDPOINT, "idempotency_key": "once", "now": NOW}
    first = create_batch(session, tenant.id, **ask)  # type: ignore[arg-type]
    add_query(session, add_batch(session, tenant))

    assert create_batch(session, tenant.id, **ask).id == first.id  # type: ignore[arg-type]


def test_no_more_of_a_tenants_queries_are_planned_than_may_run(session: Session) -> None:
    add_worker(session, capacity=64)
    tenant, other = add_tenant(session, running_max=3), add_tenant(session, "other")
    batches = [add_batch(session, each) for each in (tenant, other)]
    for batch in batches:
        for _ in range(20):
            add_query(session, batch)
    add_query(session, batches[0], state=QueryState.RUNNING)

    chosen = [row.tenant_id for row in choose_window(session, DeficitRoundRobin(), SETTINGS, NOW)]

    assert chosen.count(tenant.id) == 2
    assert chosen.count(other.id) == SETTINGS.window_size - 2
    assert room_of(session, [tenant, other]) == {tenant.id: 2}


def test_a_lowered_running_limit_plans_nothing_until_enough_have_ended(session: Session) -> None:
    add_worker(session)
    tenant = add_tenant(session, running_max=1)
    batch = add_batch(session, tenant)
    running = [add_query(session, batch, state=QueryState.RUNNING) for _ in range(2)]
    add_query(session, batch)

    before = choose_window(session, DeficitRoundRobin(), SETTINGS, NOW)
    for row in running:
        row.state = QueryState.ANSWERED
    session.flush()

    assert (len(before), len(choose_window(session, DeficitRoundRobin(), SETTINGS, NOW))) == (0, 1)


def test_limits_are_set_and_lifted_one_by_one(session: Session) -> None:
    tenant = add_tenant(session, queued_max=5, weight=2.0)

    change_tenant(session, "acme", {"running_max": 7, "requests_per_minute": 60}, NOW)
    changed = change_tenant(session, "acme", {"queued_max": None, "weight": 0.5}, NOW)

    assert (changed.id, changed.timezone, changed.weight) == (tenant.id, "UTC", 0.5)
    assert (changed.queued_max, changed.running_max, changed.requests_per_minute) == (None, 7, 60)


@pytest.mark.parametrize(
    "changes",
    [{"queued_max": 0}, {"running_max": -1}, {"requests_per_minute": 10**9}, {"weight": 0.0}, {"timezone": "Mars"}],
)
def test_a_limit_that_cannot_be_changes_nothing(session: Session, changes: dict[str, object]) -> None:
    add_tenant(session, queued_max=5)

    with pytest.raises(InvalidRequest) as caught:
        change_tenant(session, "acme", {"running_max": 7} | changes, NOW)

    assert caught.value.attributes["param"] == next(iter(changes))
    assert session.scalars(select(Tenant.running_max)).one() is None


def test_an_enabled_tenants_queries_go_on(session: Session) -> None:
    add_worker(session)
    tenant = add_tenant(session)
    add_query(session, add_batch(session, tenant))
    disable_tenant(session, "acme", NOW)

    before = choose_window(session, DeficitRoundRobin(), SETTINGS, NOW)
    enabled = enable_tenant(session, "acme")

    assert (len(before), enabled.disabled_at) == (0, None)
    assert len(choose_window(session, DeficitRoundRobin(), SETTINGS, NOW)) == 1


# Time zones. Half past midnight in UTC; in New York the day before is still on, in Tokyo the day is well on its way.
INSTANT = datetime(2026, 3, 18, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Spender:
    """A tenant under a daily cap whose attempt spends, or holds, what a test says."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tenant = add_tenant(session)
        self.cap = caps.set_cap(session, self.tenant, limit_nanousd=1000, period=Period.DAY, now=INSTANT)
        add_worker(session)
        self.funded = fund(session, add_query(session, add_batch(session, self.tenant)))

    def hold(self, tokens: int, now: datetime) -> ledger.Reservation:
        request = WaveRequest(funded=self.funded, samples=1, tokens_max=tokens, tokens_floor=tokens, prompt_tokens=10)
        return ledger.reserve(self.session, request, now)

    def settle(self, held: ledger.Reservation, now: datetime) -> None:
        usage = Usage(prompt=10, completion=held.tokens_max)
        sample = Sample(text="4", tokens=held.tokens_max)
        settlement = ledger.Settlement(
            funded=self.funded, wave_id=held.wave_id, usage=usage, latency_s=1.0, samples=(sample,)
        )
        ledger.settle(self.session, settlement, now)

    def spend(self, tokens: int, now: datetime) -> None:
        self.settle(self.hold(tokens, now), now)

    def move_to(self, timezone: str, now: datetime = INSTANT) -> caps.CapStatus:
        change_tenant(self.session, self.tenant.id, {"timezone": timezone}, now)
        return self.status(now)

    def status(self, now: datetime = INSTANT) -> caps.CapStatus:
        [status] = caps.list_caps(self.session, self.tenant.id, now)
        return status


@pytest.fixture
def spender(session: Session) -> Spender:
    return Spender(session)


def test_a_new_time_zones_period_counts_what_the_ledger_has_since_its_midnight(spender: Spender) -> None:
    spender.spend(20, INSTANT - 12 * HOUR)  # 50 nano-dollars, yesterday in UTC and today in New York
    spender.spend(40, INSTANT)  # 90

    in_utc = spender.status()
    in_new_york = spender.move_to("America/New_York")
    back_in_utc = spender.move_to("UTC")

    assert (in_utc.spent_nanousd, in_new_york.spent_nanousd, back_in_utc.spent_nanousd) == (90, 140, 90)
    assert in_new_york.turns_at == datetime(2026, 3, 18, 4, tzinfo=UTC)
    assert back_in_utc == in_utc
    assert list(discrepancies(spender.session)) == []


def test_money_held_across_a_change_of_time_zone_is_released_where_it_is_counted(spender: Spender) -> None:
    early, late = spender.hold(20, INSTANT - HOUR), spender.hold(40, INSTANT)

    moved = spender.move_to("Asia/Tokyo")
    for held in (early, late):
        spender.settle(held, INSTANT)

    assert (moved.held_nanousd, moved.spent_nanousd) == (140, 0)
    assert (spender.status().held_nanousd, spender.status().spent_nanousd) == (0, 140)
    assert list(discrepancies(spender.session)) == []


@pytest.mark.parametrize("timezone", ["America/New_York", "Asia/Tokyo", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_a_worker_that_learned_of_the_tenant_before_the_change_spends_from_the_new_period(
    spender: Spender, timezone: str
) -> None:
    spender.spend(200, INSTANT)
    spender.move_to(timezone)

    for behind in (timedelta(0), timedelta(seconds=5), HOUR):  # its clock may be behind, too
        spender.spend(40, INSTANT - behind)

    assert spender.status().spent_nanousd == 410 + 3 * 90
    assert list(discrepancies(spender.session)) == []


def test_moving_from_zone_to_zone_forgets_and_doubles_nothing(spender: Spender) -> None:
    zones = ["America/Los_Angeles", "UTC", "America/Los_Angeles", "Pacific/Kiritimati", "Asia/Kolkata", "UTC"]

    for i, zone in enumerate(zones):
        spender.move_to(zone, INSTANT + i * timedelta(minutes=1))
        spender.spend(5, INSTANT + i * timedelta(minutes=1))
        assert list(discrepancies(spender.session)) == []

    booked = spender.session.scalar(select(func.sum(Entry.spent_delta_nanousd)))
    assert spender.status(INSTANT + HOUR).spent_nanousd == booked == 6 * 20


def test_a_change_of_time_zone_cannot_free_a_cap_that_is_used_up(spender: Spender) -> None:
    spender.spend(490, INSTANT)  # 990 of 1000

    spender.move_to("Europe/Berlin")

    assert spender.status().left_nanousd == 10
    with pytest.raises(CapReached):
        spender.hold(10, INSTANT)


def test_a_total_cap_knows_no_time_zone(session: Session) -> None:
    tenant = add_tenant(session)
    caps.set_cap(session, tenant, limit_nanousd=1000, period=Period.TOTAL, now=NOW)
    before = session.scalars(select(CapPeriod.id)).all()

    change_tenant(session, tenant.id, {"timezone": "Asia/Tokyo"}, NOW)

    assert session.scalars(select(CapPeriod.id)).all() == before
