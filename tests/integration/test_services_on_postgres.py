"""The API and its services on PostgreSQL: the same answers as on SQLite, and no text that it cannot keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Cap, Tenant
from scheduler import database
from scheduler.api.app import create_app
from scheduler.caps import list_caps, set_cap
from scheduler.core.periods import Period
from scheduler.outages import is_passing
from scheduler.prices import list_prices
from scheduler.reports import By, Scope, SpendReport, spend_report
from scheduler.settings import Settings
from scheduler.states import QueryState
from scheduler.wiring import Services
from tests.factories import NOW, add_batch, add_query, add_tenant, new_sessions
from tests.unit.answering import answer

ADMIN = {"Authorization": "Bearer sk-allotd-admin"}


@pytest.fixture
def sessions(new_database: Callable[[], str]) -> Iterator[sessionmaker[Session]]:
    with new_sessions(new_database()) as made:
        yield made


@pytest.fixture
def api(sessions: sessionmaker[Session]) -> Iterator[TestClient]:
    settings = Settings(admin_key=SecretStr("sk-allotd-admin"))
    services = Services(settings=settings, sessions=sessions, clock=lambda: NOW)
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        yield client


def live_a_little(session: Session) -> Tenant:
    """Two tenants, two days, two batches, one line that failed, one cap."""
    tenant = add_tenant(session)
    other = add_tenant(session, "other", timezone="Asia/Tokyo")
    batch = add_batch(session, tenant)
    answer(session, batch, "21", "21", correct=True, task="sums")
    answer(session, batch, "22", correct=False, at=NOW + timedelta(days=1), seconds=3)
    answer(session, add_batch(session, other, interactive=True), "21", state=QueryState.FAILED)
    add_query(session, batch, state=QueryState.FAILED, model=None, finished_at=NOW)
    set_cap(session, tenant, limit_nanousd=10**6, period=Period.MONTH, now=NOW)
    return tenant


def test_a_process_frozen_in_a_transaction_keeps_nobody_waiting_for_its_locks(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_S", 0.5)
    with new_sessions(new_database()) as sessions:
        with sessions.begin() as session:
            tenant = add_tenant(session)
        frozen = sessions()
        frozen.execute(update(Tenant).values(timezone="Asia/Tokyo"))

        with sessions.begin() as session:
            session.execute(update(Tenant).values(timezone="Europe/Berlin"))

        with pytest.raises(DBAPIError, match="idle-in-transaction") as woken:
            frozen.execute(select(Tenant.id))
        assert is_passing(woken.value), "whoever wakes may try again, and finds its lease gone"
        frozen.close()
        with sessions() as session:
            assert session.get_one(Tenant, tenant.id).timezone == "Europe/Berlin"


def test_who_only_reads_may_rest_between_two_looks(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_S", 0.2)
    with new_sessions(new_database()) as sessions, database.reading(sessions) as session:
        database.rest_long(session)
        time.sleep(0.5)

        assert session.scalars(select(Tenant.id)).all() == []


def shown(report: SpendReport) -> list[object]:
    """Everything a report says, but for the ids that are made anew."""
    groups = [
        (
            group.key if report.by is not By.BATCH else None,
            dict(group.outcomes),
            (group.labelled, group.correct, group.samples, group.prompt_tokens, group.cached_tokens),
            (group.completion_tokens, group.reasoning_tokens, group.discarded_tokens),
            (group.cost_nanousd, group.own_cost_nanousd, group.uniform_cost_nanousd),
            (group.latency_p50_s, group.latency_p95_s, group.prompt_estimate_error),
        )
        for group in (*report.groups, report.total)
    ]
    return [*groups, *((cap.tenant_name, cap.spent_nanousd, cap.held_nanousd) for cap in report.caps)]


@pytest.mark.parametrize("by", list(By))
def test_a_report_is_the_same_on_both_databases(sessions: sessionmaker[Session], by: By) -> None:
    made = []
    with new_sessions() as on_sqlite:
        for each in (on_sqlite, sessions):
            with each.begin() as session:
                tenant = live_a_little(session)
                scopes = (Scope(), Scope(tenant_id=tenant.id, from_=NOW, to=NOW + timedelta(hours=1)))
                made.append([shown(spend_report(session, scope, by, NOW)) for scope in scopes])

    assert made[0] == made[1]


def test_caps_and_prices_are_listed(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        live_a_little(session)

    with sessions() as session:
        [cap], [(_, in_force)] = list_caps(session, None, NOW), list_prices(session, NOW)

    assert (cap.tenant_name, in_force) == ("acme", True)


def test_a_cap_that_many_set_at_once_is_one_cap(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        tenant = add_tenant(session)

    def set_one(limit: int) -> None:
        with sessions.begin() as session:
            set_cap(session, tenant, limit_nanousd=limit, period=Period.DAY, now=NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(set_one, range(1, 25)))

    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Cap)) == 1


def test_a_tenant_that_many_make_at_once_is_made_once(api: TestClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: api.post("/v1/tenants", json={"name": "acme"}, headers=ADMIN), range(16)))

    assert sorted(reply.status_code for reply in replies) == [200, *[409] * 15]


@pytest.mark.parametrize(
    "path", ["/v1/files/%00", "/v1/batches?after=%00", "/v1/spend?tenant=%00&batch=%00", "/v1/models/%00"]
)
def test_a_nul_character_never_reaches_the_database(api: TestClient, path: str) -> None:
    assert api.get(path, headers=ADMIN).status_code == 400


@pytest.mark.parametrize("by", [each.value for each in By])
def test_a_report_over_http(api: TestClient, sessions: sessionmaker[Session], by: str) -> None:
    with sessions.begin() as session:
        live_a_little(session)

    reply = api.get("/v1/spend", params={"by": by, "from": "2026-03-01", "to": "2026-04-01"}, headers=ADMIN)

    assert (reply.status_code, reply.json()["total"]["queries"]) == (200, 4)


def test_metrics_are_read(api: TestClient, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        live_a_little(session)

    text = api.get("/metrics", headers=ADMIN).text

    assert "allotd_database_up 1.0" in text
    assert 'tenant="acme"' in text
