"""Tenants, keys, caps, prices, models, files and dry runs over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from models.tables import Batch, File, QueryRow
from scheduler.wiring import Services
from tests.factories import MODEL
from tests.unit.api.conftest import ADMIN, bearer, new_tenant

LINE = {
    "custom_id": "one",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": MODEL, "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 10},
}


def test_a_tenant_is_made_with_a_key_that_works_at_once(api: TestClient) -> None:
    tenant = new_tenant(api, "acme")

    reply = api.get("/v1/files", headers=bearer(tenant))

    assert reply.status_code == 200
    assert (tenant["name"], tenant["timezone"], tenant["disabled_at"]) == ("acme", "UTC", None)


def test_no_list_shows_a_secret(api: TestClient, tenant: dict[str, Any]) -> None:
    texts = [api.get(path, headers=ADMIN).text for path in ("/v1/tenants", "/v1/tenants/acme/keys")]

    assert all(tenant["key"]["key"] not in text for text in texts)
    assert tenant["key"]["prefix"] in texts[1]


def test_a_revoked_key_stops_working(api: TestClient, tenant: dict[str, Any]) -> None:
    api.delete(f"/v1/tenants/acme/keys/{tenant['key']['id']}", headers=ADMIN)

    assert api.get("/v1/files", headers=bearer(tenant)).status_code == 401


def test_a_disabled_tenants_key_stops_working(api: TestClient, tenant: dict[str, Any]) -> None:
    reply = api.post("/v1/tenants/acme/disable", headers=ADMIN)

    assert reply.json()["disabled_at"] is not None
    assert api.get("/v1/files", headers=bearer(tenant)).status_code == 401


def test_a_key_is_made_without_a_body(api: TestClient, tenant: dict[str, Any]) -> None:
    reply = api.post(f"/v1/tenants/{tenant['id']}/keys", headers=ADMIN)

    assert (reply.status_code, sorted(reply.json()["scopes"])) == (200, ["read", "submit"])


def test_a_cap_tells_every_amount_twice(api: TestClient, tenant: dict[str, Any]) -> None:
    body = {"tenant": "acme", "limit_usd": "0.25", "period": "day", "soft": 0.8}

    cap = api.post("/v1/caps", json=body, headers=ADMIN).json()

    assert (cap["limit_nanousd"], cap["limit_usd"]) == (250_000_000, "0.25")
    assert (cap["left_nanousd"], cap["left_usd"], cap["spent_usd"]) == (250_000_000, "0.25", "0.00")
    assert (cap["tenant"], cap["tenant_name"], cap["soft"]) == (tenant["id"], "acme", 0.8)


def test_a_tenant_sees_its_own_caps_and_cannot_set_any(api: TestClient, auth: dict[str, str]) -> None:
    new_tenant(api, "other")
    for name in ("acme", "other"):
        api.post("/v1/caps", json={"tenant": name, "limit_usd": 1, "period": "total"}, headers=ADMIN)

    listed = api.get("/v1/caps", headers=auth).json()["data"]
    others = api.get("/v1/caps", params={"tenant": "other"}, headers=auth)
    attempt = api.post("/v1/caps", json={"tenant": "acme", "limit_usd": 9, "period": "total"}, headers=auth)

    assert [cap["tenant_name"] for cap in listed] == ["acme"]
    assert (others.status_code, attempt.status_code) == (404, 403)


def test_a_cap_is_lifted_once(api: TestClient, tenant: dict[str, Any]) -> None:
    cap = api.post("/v1/caps", json={"tenant": "acme", "limit_usd": 1, "period": "week"}, headers=ADMIN).json()

    replies = [api.delete(f"/v1/caps/{cap['id']}", headers=ADMIN).status_code for _ in range(2)]

    assert replies == [200, 404]
    assert api.get("/v1/caps", headers=ADMIN).json()["data"] == []


@pytest.mark.parametrize("amount", ["0", -1, "0.0000000001", "1e400", "ten", True, [], {}])
def test_an_amount_that_cannot_be_a_cap_is_refused(api: TestClient, tenant: dict[str, Any], amount: object) -> None:
    reply = api.post("/v1/caps", json={"tenant": "acme", "limit_usd": amount, "period": "day"}, headers=ADMIN)

    assert reply.status_code == 400


def test_a_cap_of_nothing_names_the_way_to_stop_a_tenant(api: TestClient, tenant: dict[str, Any]) -> None:
    reply = api.post("/v1/caps", json={"tenant": "acme", "limit_usd": "0.00", "period": "day"}, headers=ADMIN)

    assert reply.status_code == 400
    assert "`allotd tenant disable acme`" in reply.json()["error"]["message"]


def test_a_tenants_name_of_other_letters_is_refused_with_those_there_are(api: TestClient) -> None:
    reply = api.post("/v1/tenants", json={"name": "Zürich"}, headers=ADMIN)

    assert reply.status_code == 400
    assert "letters (a to z, A to Z" in reply.json()["error"]["message"]


def test_the_head_of_a_files_content_is_its_length(api: TestClient, auth: dict[str, str]) -> None:
    file = api.post("/v1/files", files={"file": ("a", b'{"a": 1}')}, data={"purpose": "batch"}, headers=auth).json()

    head = api.head(f"/v1/files/{file['id']}/content", headers=auth)
    none = api.head("/v1/files/file-none/content", headers=auth)

    assert (head.status_code, head.headers["content-length"], head.content) == (200, "8", b"")
    assert none.status_code == 404


def test_a_file_and_a_batchs_output_may_expire_as_openai_has_it(api: TestClient, auth: dict[str, str]) -> None:
    form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = api.post("/v1/files", files={"file": ("a", b"{}")}, data=form, headers=auth).json()
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "output_expires_after": {"anchor": "created_at", "seconds": 2_592_000},
    }

    batch = api.post("/v1/batches", json=body, headers=auth)

    assert file["expires_at"] == file["created_at"] + 3600
    assert batch.status_code == 200


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "last_used_at", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"}, "expires_after[seconds]"),
    ],
)
def test_a_file_cannot_expire_in_other_ways(
    api: TestClient, auth: dict[str, str], wrong: dict[str, str], param: str
) -> None:
    reply = api.post("/v1/files", files={"file": ("a", b"{}")}, data={"purpose": "batch", **wrong}, headers=auth)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 3600}, {"anchor": "now", "seconds": 3600}, {"anchor": "created_at", "seconds": 1}]
)
def test_a_batchs_output_cannot_expire_in_other_ways(
    api: TestClient, auth: dict[str, str], wrong: dict[str, Any]
) -> None:
    body = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}

    reply = api.post("/v1/batches", json={**body, "output_expires_after": wrong}, headers=auth)

    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("output_expires_after")


def test_a_cap_on_a_model_without_a_price_is_refused(api: TestClient, tenant: dict[str, Any]) -> None:
    body = {"tenant": "acme", "limit_usd": "1", "period": "day", "model": "unpriced"}

    reply = api.post("/v1/caps", json=body, headers=ADMIN)

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "model_unpriced")


def test_a_price_is_told_per_token_and_per_million(api: TestClient, auth: dict[str, str]) -> None:
    body = {"model": "large", "prompt_usd_per_mtok": "2.5", "completion_usd_per_mtok": 10}

    price = api.post("/v1/prices", json=body, headers=ADMIN).json()

    assert (price["prompt_nanousd_per_token"], price["prompt_usd_per_mtok"]) == (2500, "2.500")
    assert (price["completion_nanousd_per_token"], price["cached_nanousd_per_token"]) == (10_000, 2500)
    assert price in api.get("/v1/prices", headers=auth).json()["data"]


def test_a_price_finer_than_a_nano_dollar_is_refused_with_the_nearest_two(api: TestClient) -> None:
    body = {"model": "large", "prompt_usd_per_mtok": "0.0375", "completion_usd_per_mtok": "1"}

    reply = api.post("/v1/prices", json=body, headers=ADMIN)

    assert reply.status_code == 400
    assert "0.037 and 0.038" in reply.json()["error"]["message"]


def test_models_are_listed_with_their_context_and_price(api: TestClient, auth: dict[str, str]) -> None:
    [model] = api.get("/v1/models", headers=auth).json()["data"]

    assert (model["id"], model["object"], model["context_tokens"]) == (MODEL, "model", 4096)
    assert model["price"]["completion_nanousd_per_token"] == 2
    assert api.get("/v1/models/org/none", headers=auth).json()["error"]["code"] == "model_not_found"


def test_a_dry_run_says_what_it_would_cost_and_changes_nothing(
    api: TestClient, auth: dict[str, str], services: Services
) -> None:
    content = json.dumps(LINE).encode() + b"\nnot JSON\n"

    run = api.post(
        "/v1/batches/dry-run",
        content=content,
        params={"max_cost_usd": "0.5", "strategy": "direct"},
        headers={**auth, "Content-Type": "application/jsonl"},
    ).json()

    assert (run["lines"], run["runnable"], [bad["line"] for bad in run["bad"]]) == (2, 1, [2])
    assert 0 < run["low_nanousd"] <= run["expected_nanousd"] <= run["worst_nanousd"]
    assert (run["limit_nanousd"], run["limit_usd"]) == (500_000_000, "0.50")
    with services.sessions() as session:
        rows = [session.scalar(select(func.count()).select_from(table)) for table in (Batch, File, QueryRow)]
    assert rows == [0, 0, 0]


def test_a_file_name_is_shown_and_never_used(api: TestClient, auth: dict[str, str]) -> None:
    name = "../../etc/passwd"

    reply = api.post("/v1/files", files={"file": (name, b"{}")}, data={"purpose": "batch"}, headers=auth)

    assert (reply.status_code, reply.json()["filename"]) == (200, name)


def test_a_purpose_that_is_not_batch_is_refused(api: TestClient, auth: dict[str, str]) -> None:
    reply = api.post("/v1/files", files={"file": ("a", b"{}")}, data={"purpose": "fine-tune"}, headers=auth)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "purpose")


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ({"from": "2026-03-01", "to": "2026-04-01"}, ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")),
        ({"from": "2026-03-01T12:00:00+02:00"}, ("2026-03-01T10:00:00Z", None)),
        ({"to": "2026-03-01T12:00:00"}, (None, "2026-03-01T12:00:00Z")),
    ],
)
def test_a_report_is_of_the_dates_or_instants_asked_for(
    api: TestClient, auth: dict[str, str], period: dict[str, str], expected: tuple[str | None, str | None]
) -> None:
    report = api.get("/v1/spend", params=period, headers=auth).json()

    assert (report["object"], report["from"], report["to"]) == ("spend_report", *expected)


@pytest.mark.parametrize(
    "question",
    [
        {"by": "colour"},
        {"from": "yesterday"},
        {"from": "0.5"},
        {"to": "0001-01-01T00:00:00+12:00"},
        {"tenant": "nobody"},
    ],
)
def test_a_report_that_cannot_be_made_says_why(api: TestClient, auth: dict[str, str], question: dict[str, str]) -> None:
    reply = api.get("/v1/spend", params=question, headers=auth)

    assert reply.status_code in {400, 404}
    assert reply.json()["error"]["param"] in question
