"""Whatever is wrong with a request, the reply has OpenAI's shape, says what to do, and is never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from models.tables import File, FileChunk, Tenant
from scheduler.api.app import create_app
from scheduler.wiring import Services
from tests.unit.api.conftest import ADMIN, bearer, new_tenant

JSON = {"Content-Type": "application/json"}


def broken_clock() -> object:
    """A clock that is a fault of ours."""
    raise ZeroDivisionError("the secret is 42")


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer nobody", "Basic bm9ib2R5", "\xff"])
def test_without_a_known_key_nothing_under_v1_exists(api: TestClient, authorization: str | None) -> None:
    headers = {"Authorization": authorization.encode("latin-1")} if authorization is not None else {}

    replies = [api.get(path, headers=headers) for path in ("/v1/batches", "/v1/nothing")]  # type: ignore[arg-type]

    for reply in replies:
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["code"] == "invalid_api_key"


def test_every_error_has_openais_four_fields(api: TestClient, auth: dict[str, str]) -> None:
    reply = api.get("/v1/batches/batch_nobody", headers=auth)

    assert (reply.status_code, set(reply.json()), set(reply.json()["error"])) == (
        404,
        {"error"},
        {"message", "type", "param", "code"},
    )


def test_an_address_that_is_none_is_named(api: TestClient) -> None:
    reply = api.get("/nothing/here")

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert "/nothing/here" in reply.json()["error"]["message"]


def test_a_wrong_method_is_told_all_that_the_address_takes(api: TestClient) -> None:
    reply = api.put("/v1/batches", headers=ADMIN)

    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, POST")
    assert reply.json()["error"]["code"] == "method_not_allowed"


def test_an_address_of_its_own_takes_its_own_methods_only(api: TestClient) -> None:
    reply = api.put("/v1/batches/dry-run", headers=ADMIN)

    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_a_wrong_field_is_named(api: TestClient) -> None:
    reply = api.post("/v1/caps", json={"tenant": "acme", "limit_usd": "1", "period": "year"}, headers=ADMIN)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "period")


def test_a_field_that_is_not_known_is_named(api: TestClient) -> None:
    reply = api.post("/v1/tenants", json={"name": "acme", "colour": "red"}, headers=ADMIN)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "colour")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"name": NaN}',
        b'{"name": "a", "weight": 1e400}',
        b'{"name": "a", "weight": Infinity}',
        b'{"name": "\\ud800"}',
        b'{"name": "a\\u0000b"}',
        b'{"name": "\xff"}',
        b'{"name": ["a"]}',
        b'{"name": {"a": 1}}',
        b"[" * 5000,
        b'{"name": ' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"name": "a", "weight": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_makes_no_sense_is_a_bad_request(api: TestClient, body: bytes) -> None:
    reply = api.post("/v1/tenants", content=body, headers={**ADMIN, **JSON})

    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/files/a%00b", "/v1/batches?after=%00", "/v1/spend?tenant=a%00"])
def test_a_nul_character_in_an_address_is_refused(api: TestClient, path: str) -> None:
    reply = api.get(path, headers=ADMIN)

    assert reply.status_code == 400


def test_a_declared_length_over_the_limit_is_refused_before_anything_is_sent(api: TestClient) -> None:
    reply = api.post("/v1/tenants", content=b"x" * 20_001, headers={**ADMIN, **JSON})

    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_an_actual_length_over_the_limit_is_refused_while_it_arrives(api: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    reply = api.post("/v1/tenants", content=endless(), headers={**ADMIN, **JSON})

    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_a_file_over_the_limit_leaves_nothing_behind(api: TestClient, auth: dict[str, str], services: Services) -> None:
    upload = {"file": ("big.jsonl", b"x" * 200_001)}

    reply = api.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=auth)

    with services.sessions() as session:
        left = (
            session.scalar(select(func.count()).select_from(File)),
            session.scalar(select(func.count()).select_from(FileChunk)),
        )
    assert (reply.status_code, left) == (413, (0, 0))


def test_a_fault_of_ours_is_told_without_its_inside(services: Services) -> None:
    broken = replace(services, clock=broken_clock)  # type: ignore[arg-type]

    with TestClient(create_app(broken), raise_server_exceptions=False) as api:
        reply = api.get("/v1/prices", headers=ADMIN)

    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "42" not in reply.text
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-should-retry"] == "false"


def test_a_refused_write_is_undone_as_a_whole(api: TestClient, services: Services) -> None:
    api.post("/v1/tenants", json={"name": "acme"}, headers=ADMIN)

    reply = api.post("/v1/tenants", json={"name": "acme"}, headers=ADMIN)

    with services.sessions() as session:
        assert session.scalar(select(func.count()).where(Tenant.name == "acme")) == 1
    assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")


def test_a_key_without_the_scope_is_refused_with_what_it_lacks(api: TestClient, auth: dict[str, str]) -> None:
    reply = api.get("/v1/tenants", headers=auth)

    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert "admin" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("scope", "may_read", "may_submit"), [("read", True, False), ("submit", False, True)])
def test_a_key_does_what_its_scopes_say(api: TestClient, scope: str, may_read: bool, may_submit: bool) -> None:
    tenant = new_tenant(api, "acme")
    key = api.post(f"/v1/tenants/{tenant['id']}/keys", json={"scopes": [scope]}, headers=ADMIN).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}

    read = api.get("/v1/files", headers=headers)
    submitted = api.post("/v1/files", files={"file": ("a", b"{}")}, data={"purpose": "batch"}, headers=headers)

    assert (read.status_code == 200, submitted.status_code == 200) == (may_read, may_submit)


def test_a_tenant_cannot_speak_for_another(api: TestClient, auth: dict[str, str]) -> None:
    new_tenant(api, "other")

    reply = api.get("/v1/files", headers={**auth, "Allotd-Tenant": "other"})

    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "There is no tenant 'other'.")


def test_a_tenant_may_name_itself(api: TestClient, auth: dict[str, str]) -> None:
    reply = api.get("/v1/files", headers={**auth, "Allotd-Tenant": "acme"})

    assert reply.status_code == 200


def test_an_admin_says_whom_a_submission_is_for(api: TestClient) -> None:
    tenant = new_tenant(api, "acme")
    upload = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}

    for_nobody = api.post("/v1/files", headers=ADMIN, **upload)  # type: ignore[arg-type]
    for_acme = api.post("/v1/files", headers={**ADMIN, "Allotd-Tenant": "acme"}, **upload)  # type: ignore[arg-type]

    assert (for_nobody.status_code, for_nobody.json()["error"]["param"]) == (400, "Allotd-Tenant")
    assert [file["id"] for file in api.get("/v1/files", headers=bearer(tenant)).json()["data"]] == [
        for_acme.json()["id"]
    ]


def test_every_reply_has_a_name_and_forbids_what_browsers_do(api: TestClient) -> None:
    replies = [api.get(path) for path in ("/healthz", "/nothing", "/v1/batches")]

    assert len({reply.headers["x-request-id"] for reply in replies}) == 3
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "server" not in reply.headers


def test_a_misspelt_parameter_is_refused_by_name_and_not_ignored(api: TestClient, auth: dict[str, str]) -> None:
    reply = api.get("/v1/batches", params={"limt": 5}, headers=auth)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "unknown_parameter", "limt")
    assert error["message"] == "The parameter 'limt' is not known; known here: after, limit."
