"""A tenant that asks too often, or has too much waiting, is told so, when to come back, and disturbs nobody else."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from scheduler.api.rates import RequestRates
from scheduler.errors import RateLimited
from scheduler.tenants import find_tenant
from scheduler.wiring import Services
from tests.factories import MODEL, add_batch, add_query
from tests.services import Valkey, free_port
from tests.unit.api.conftest import ADMIN, bearer, new_tenant


def test_a_tenant_over_its_rate_is_told_when_to_come_back_and_the_others_are_served(
    api: TestClient, tenant: dict[str, Any]
) -> None:
    other = new_tenant(api, "other")
    api.post("/v1/tenants/acme", json={"requests_per_minute": 3}, headers=ADMIN)

    replies = [api.get("/v1/files", headers=bearer(tenant)) for _ in range(4)]

    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    error = replies[3].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(replies[3].headers["retry-after"]) <= 60
    assert replies[3].headers["x-should-retry"] == "true"
    assert api.get("/v1/files", headers=bearer(other)).status_code == 200
    assert api.get("/v1/files", headers={**ADMIN, "Allotd-Tenant": "acme"}).status_code == 200


def test_chats_count_into_the_rate_like_everything_else(api: TestClient, tenant: dict[str, Any]) -> None:
    api.post("/v1/tenants/acme", json={"requests_per_minute": 1}, headers=ADMIN)
    api.get("/v1/models", headers=bearer(tenant))

    reply = api.post("/v1/chat/completions", json={}, headers=bearer(tenant))

    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_two_api_processes_count_together_on_one_broker(valkey: Valkey) -> None:
    first, second = RequestRates(valkey.url), RequestRates(valkey.url)
    tenant_id = f"tenant_{time.monotonic_ns()}"

    first.count(tenant_id, 2)
    second.count(tenant_id, 2)

    with pytest.raises(RateLimited, match="may ask 2 times a minute"):
        first.count(tenant_id, 2)


def test_without_the_broker_each_process_counts_its_own_and_does_not_wait_for_it_again() -> None:
    rates = RequestRates(f"redis://127.0.0.1:{free_port()}/0")

    began = time.monotonic()
    for _ in range(20):
        rates.count("tenant_a", 20)

    assert time.monotonic() - began < 5
    with pytest.raises(RateLimited):
        rates.count("tenant_a", 20)


def test_a_full_queue_refuses_a_chat_with_a_reason_that_may_pass(
    api: TestClient, tenant: dict[str, Any], services: Services
) -> None:
    api.post("/v1/tenants/acme", json={"queued_max": 1}, headers=ADMIN)
    question = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 10}
    ask = {"input_file_id": "", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    file = api.post("/v1/files", files={"file": ("a", b"{}")}, data={"purpose": "batch"}, headers=bearer(tenant)).json()
    with services.sessions.begin() as session:
        add_query(session, add_batch(session, find_tenant(session, "acme")))

    chat = api.post("/v1/chat/completions", json=question, headers=bearer(tenant))
    batch = api.post("/v1/batches", json=ask | {"input_file_id": file["id"]}, headers=bearer(tenant))

    for reply in (chat, batch):
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
        assert "at most 1 may" in reply.json()["error"]["message"]
        assert reply.headers["x-should-retry"] == "true"


def test_a_tenants_limits_are_changed_one_by_one_and_lifted_by_null(api: TestClient, tenant: dict[str, Any]) -> None:
    first = api.post("/v1/tenants/acme", json={"queued_max": 9, "weight": 2}, headers=ADMIN).json()
    second = api.post("/v1/tenants/acme", json={"queued_max": None, "timezone": "Asia/Tokyo"}, headers=ADMIN).json()

    assert (first["queued_max"], first["weight"], first["timezone"]) == (9, 2.0, "UTC")
    assert (second["queued_max"], second["weight"], second["timezone"]) == (None, 2.0, "Asia/Tokyo")
    assert api.get("/v1/tenants/acme", headers=ADMIN).json() == second


def test_a_tenant_is_made_with_its_limits_and_enabled_again_after_it_was_disabled(api: TestClient) -> None:
    made = api.post("/v1/tenants", json={"name": "acme", "running_max": 4}, headers=ADMIN).json()
    api.post("/v1/tenants/acme/disable", headers=ADMIN)
    while_disabled = api.get("/v1/files", headers=bearer(made)).status_code

    enabled = api.post("/v1/tenants/acme/enable", headers=ADMIN).json()

    assert (made["running_max"], while_disabled, enabled["disabled_at"]) == (4, 401, None)
    assert api.get("/v1/files", headers=bearer(made)).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [{"queued_max": 0}, {"running_max": "4"}, {"requests_per_minute": 1.5}, {"timezone": None}, {"name": "x"}],
)
def test_a_change_that_cannot_be_names_the_field(
    api: TestClient, tenant: dict[str, Any], changes: dict[str, Any]
) -> None:
    reply = api.post("/v1/tenants/acme", json=changes, headers=ADMIN)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, next(iter(changes)))
