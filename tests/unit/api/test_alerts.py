"""Alerts, webhooks and engines over HTTP: who may see what, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from models.tables import WebhookRow
from scheduler.alerts import raise_alert
from scheduler.engines import Distrust, quarantine_all
from scheduler.types import AlertKind
from scheduler.wiring import Services
from tests.factories import NOW, add_worker
from tests.unit.api.conftest import ADMIN

PUBLIC = "https://8.8.8.8/hook"


def raised(services: Services, kind: AlertKind, about: str, tenant_id: str | None = None) -> None:
    with services.sessions.begin() as session:
        assert raise_alert(session, kind, about, message=f"See {about}.", now=NOW, tenant_id=tenant_id)


def test_a_webhooks_secret_is_shown_when_it_is_made_and_never_again(api: TestClient) -> None:
    made = api.post("/v1/webhooks", json={"url": PUBLIC, "kinds": ["cap_soft"]}, headers=ADMIN).json()

    listed = api.get("/v1/webhooks", headers=ADMIN).json()["data"]

    assert made["secret"].startswith("whsec_")
    assert listed == [{key: value for key, value in made.items() if key != "secret"}]


@pytest.mark.parametrize(
    "body",
    [
        {"url": "http://127.0.0.1/"},
        {"url": "ftp://8.8.8.8/"},
        {"url": "hooks.example"},
        {"url": ""},
        {"url": PUBLIC, "kinds": ["weather"]},
        {"url": PUBLIC, "kinds": []},
        {"url": PUBLIC, "secret": "mine"},
        {},
    ],
)
def test_a_webhook_that_cannot_be_is_refused_by_name(api: TestClient, body: dict[str, Any]) -> None:
    reply = api.post("/v1/webhooks", json=body, headers=ADMIN)

    assert reply.status_code == 400
    assert str(reply.json()["error"]["param"]).split(".")[0] in {"url", "kinds", "secret"}


def test_a_removed_webhook_is_not_there_any_more(api: TestClient) -> None:
    made = api.post("/v1/webhooks", json={"url": PUBLIC}, headers=ADMIN).json()

    removed = [api.delete(f"/v1/webhooks/{made['id']}", headers=ADMIN).status_code for _ in range(2)]

    assert removed == [200, 404]
    assert api.get("/v1/webhooks", headers=ADMIN).json()["data"] == []


def test_a_test_message_says_why_it_did_not_arrive(api: TestClient, services: Services) -> None:
    with services.sessions.begin() as session:
        session.add(WebhookRow(id="webhook_1", url="http://127.0.0.1:1/", secret="whsec_AAAA", created_at=NOW))

    reply = api.post("/v1/webhooks/webhook_1/test", headers=ADMIN)
    unknown = api.post("/v1/webhooks/webhook_2/test", headers=ADMIN)

    assert reply.json()["delivered"] is False
    assert "no public address" in reply.json()["problem"]
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/webhooks"),
        ("POST", "/v1/webhooks"),
        ("DELETE", "/v1/webhooks/webhook_1"),
        ("POST", "/v1/webhooks/webhook_1/test"),
        ("GET", "/v1/engines"),
        ("POST", "/v1/engines/worker-1/release"),
    ],
)
def test_webhooks_and_engines_are_for_admins(api: TestClient, auth: dict[str, str], method: str, path: str) -> None:
    reply = api.request(method, path, headers=auth, json={"url": PUBLIC} if method == "POST" else None)

    assert reply.status_code == 403


def test_a_tenant_sees_alerts_about_itself_and_an_admin_all_with_their_deliveries(
    api: TestClient, services: Services, tenant: dict[str, Any], auth: dict[str, str]
) -> None:
    webhook = api.post("/v1/webhooks", json={"url": PUBLIC}, headers=ADMIN).json()
    raised(services, AlertKind.CAP_SOFT, "cap_1", tenant["id"])
    raised(services, AlertKind.LEDGER_UNBALANCED, "ledger")

    own = api.get("/v1/alerts", headers=auth).json()["data"]
    every = api.get("/v1/alerts", headers=ADMIN).json()["data"]

    assert [(alert["subject"], alert["deliveries"]) for alert in own] == [("cap_1", None)]
    assert {alert["subject"] for alert in every} == {"cap_1", "ledger"}
    assert {d["webhook"] for alert in every for d in alert["deliveries"]} == {webhook["id"]}


def test_alerts_come_in_pages_newest_first(api: TestClient, services: Services) -> None:
    for number in range(5):
        with services.sessions.begin() as session:
            now = NOW + timedelta(minutes=number // 2)
            raise_alert(session, AlertKind.CAP_REACHED, f"cap_{number}", message="Full.", now=now)

    seen, after = [], None
    while True:
        reply = api.get("/v1/alerts", params={"limit": 2} | ({"after": after} if after else {}), headers=ADMIN).json()
        seen += [alert["subject"] for alert in reply["data"]]
        after = reply["last_id"]
        if not reply["has_more"]:
            break

    assert seen[0] == "cap_4"
    assert sorted(seen) == [f"cap_{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("params", "status"),
    [({"after": "alert_no"}, 404), ({"kind": "no"}, 400), ({"limit": 0}, 400), ({"tenant": "no"}, 404)],
)
def test_alerts_that_cannot_be_listed_say_why(api: TestClient, params: dict[str, Any], status: int) -> None:
    assert api.get("/v1/alerts", params=params, headers=ADMIN).status_code == status


def test_another_tenants_alert_is_no_place_to_go_on_from(
    api: TestClient, services: Services, auth: dict[str, str]
) -> None:
    raised(services, AlertKind.CAP_SOFT, "cap_1", "tenant_first")
    [alert] = api.get("/v1/alerts", headers=ADMIN).json()["data"]

    assert api.get("/v1/alerts", params={"after": alert["id"]}, headers=auth).status_code == 404


def test_a_quarantined_engine_is_shown_with_its_reason_until_it_is_released(
    api: TestClient, services: Services
) -> None:
    with services.sessions.begin() as session:
        for name, engine in (("w-1", "http://gpu:8000/v1"), ("w-2", "http://gpu:8000/v1"), ("w-3", None)):
            add_worker(session, name).engine = engine
        quarantine_all(session, [Distrust(worker_id="w-1", because="It lied.")], NOW)
        quarantine_all(session, [Distrust(worker_id="w-2", because="Again.")], NOW)

    quarantined = {e["id"]: e for e in api.get("/v1/engines", headers=ADMIN).json()["data"]}
    released = api.post("/v1/engines/w-2/release", headers=ADMIN)
    again = api.post("/v1/engines/w-1/release", headers=ADMIN)

    assert {name: engine["state"] for name, engine in quarantined.items()} == {
        "w-1": "quarantined",
        "w-2": "quarantined",
        "w-3": "working",
    }
    assert quarantined["w-2"]["quarantined_because"] == "It lied."
    assert (released.json()["state"], again.status_code) == ("working", 409)
    assert api.post("/v1/engines/w-9/release", headers=ADMIN).status_code == 404
    [alert] = api.get("/v1/alerts", headers=ADMIN).json()["data"]
    assert (alert["kind"], alert["details"]["workers"]) == ("engine_quarantined", ["w-1", "w-2"])


def test_stopped_workers_are_listed_only_when_asked_for(api: TestClient, services: Services) -> None:
    with services.sessions.begin() as session:
        add_worker(session, "w-1").stopped_at = NOW
        add_worker(session, "w-2", heartbeat_at=NOW - timedelta(hours=1))

    present = api.get("/v1/engines", headers=ADMIN).json()["data"]
    every = api.get("/v1/engines", params={"all": "true"}, headers=ADMIN).json()["data"]

    assert [(engine["id"], engine["state"]) for engine in present] == [("w-2", "silent")]
    assert {engine["id"]: engine["state"] for engine in every} == {"w-1": "stopped", "w-2": "silent"}


def test_a_soft_limit_is_kept_when_left_out_and_removed_by_null(api: TestClient, tenant: dict[str, Any]) -> None:
    body = {"tenant": "acme", "limit_usd": "5", "period": "day"}

    softs = [
        api.post("/v1/caps", json=body | more, headers=ADMIN).json()["soft"]
        for more in ({"soft": 0.8}, {}, {"soft": None})
    ]

    assert softs == [0.8, 0.8, None]


def test_metrics_count_alerts_by_kind_and_deliveries_given_up(api: TestClient, services: Services) -> None:
    api.post("/v1/webhooks", json={"url": PUBLIC}, headers=ADMIN)
    raised(services, AlertKind.CAP_SOFT, "cap_1")

    figures = api.get("/metrics", headers=ADMIN).text

    assert 'allotd_alerts_total{kind="cap_soft"} 1.0' in figures
    assert 'allotd_webhook_deliveries{state="pending"} 1.0' in figures
