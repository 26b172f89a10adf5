"""Every route of the application: which scope it needs, that it asks for it, and that others' objects are not there.

The routes are read from the application, so a new one is tested too, and fails here until it has a scope; one with an
id in its path fails until `OTHERS` says how another tenant's is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy.orm import sessionmaker
from starlette.routing import Route

from scheduler.api.app import create_app
from scheduler.api.security import needed_scope
from scheduler.settings import Settings
from scheduler.tenants import ADMIN, READ, SUBMIT, find_tenant
from scheduler.wiring import Services
from tests.factories import MODEL, NOW, add_batch, add_cap
from tests.unit.api.conftest import ADMIN as ADMIN_HEADERS
from tests.unit.api.conftest import bearer, new_tenant

PUBLIC = {"/healthz", "/readyz", "/metrics", "/openapi.json"}
"""What needs no scope; /metrics looks at the key itself where the scraper is not on this machine."""
SAFE = {"GET", "HEAD"}
SHARED = {"model"}
"""Path parameters that name what all tenants see."""


def all_routes() -> list[tuple[str, str, APIRoute | Route]]:
    """Every method and path that the application answers."""
    services = Services(settings=Settings(), sessions=sessionmaker(), clock=lambda: NOW)
    found = [route for route in _flat(create_app(services).router.routes) if isinstance(route, Route | APIRoute)]
    return sorted(
        ((method, route.path, route) for route in found for method in route.methods or ()), key=lambda each: each[:2]
    )


def _flat(routes: Any) -> Iterator[Any]:
    for route in routes:
        yield from _flat(route.routes) if getattr(route, "routes", None) else (route,)


def scopes_of(route: Any) -> set[str]:
    """The scopes that a route's dependencies ask for."""
    waiting, found = [route.dependant], set()
    while waiting:
        dependant = waiting.pop()
        waiting += dependant.dependencies
        if (scope := needed_scope(dependant.call)) is not None:
            found.add(scope)
    return found


ROUTES = all_routes()
GUARDED = [(method, path, next(iter(scopes_of(route)), "")) for method, path, route in ROUTES if path not in PUBLIC]
WITH_IDS = [(method, path, scope) for method, path, scope in GUARDED if scope != ADMIN and "{" in path]


def ids(cases: list[tuple[str, str, str]]) -> list[str]:
    return [f"{method} {path} needs {scope or 'NOTHING'}" for method, path, scope in cases]


def filled(path: str, values: dict[str, str]) -> str:
    """The path with every parameter replaced; those not named get an id of nobody."""
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda match: values.get(match[1], "nobody"), path)


@pytest.fixture
def keys(api: TestClient, tenant: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The authorization of a key with each scope alone, and the admin's."""
    found = {ADMIN: ADMIN_HEADERS}
    for scope in (READ, SUBMIT):
        made = api.post("/v1/tenants/acme/keys", json={"scopes": [scope]}, headers=ADMIN_HEADERS).json()
        found[scope] = {"Authorization": f"Bearer {made['key']}"}
    return found


@pytest.fixture
def others(api: TestClient, services: Services) -> dict[str, str]:
    """Another tenant's objects, by the name of the path parameter that would find them."""
    other = new_tenant(api, "other")
    upload = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}
    file = api.post("/v1/files", headers=bearer(other), **upload).json()  # type: ignore[arg-type]
    with services.sessions.begin() as session:
        tenant = find_tenant(session, "other")
        batch_id, cap_id = add_batch(session, tenant).id, add_cap(session, tenant, 10**9).id
    return {
        "file_id": file["id"],
        "batch_id": batch_id,
        "cap_id": cap_id,
        "tenant": other["id"],
        "key_id": other["key"]["id"],
        "model": MODEL,
    }


@pytest.mark.parametrize(("method", "path", "route"), ROUTES, ids=[f"{method} {path}" for method, path, _ in ROUTES])
def test_every_route_asks_for_one_scope_or_is_known_to_be_public(method: str, path: str, route: Any) -> None:
    if path in PUBLIC:
        assert not isinstance(route, APIRoute) or not scopes_of(route)
        return

    assert path.startswith("/v1/"), "only what is under /v1 passes authentication"
    [scope] = scopes_of(route)
    assert scope in ({READ, ADMIN} if method in SAFE else {SUBMIT, ADMIN}), "a key that may only read changes nothing"


@pytest.mark.parametrize(("method", "path", "scope"), GUARDED, ids=ids(GUARDED))
def test_every_route_refuses_keys_without_its_scope_and_whoever_has_none(
    api: TestClient, keys: dict[str, dict[str, str]], method: str, path: str, scope: str
) -> None:
    url = filled(path, {})

    nobody = api.request(method, url)
    refused = {each: api.request(method, url, headers=keys[each]).status_code == 403 for each in (READ, SUBMIT, ADMIN)}

    assert nobody.status_code == 401
    assert refused == {READ: scope != READ, SUBMIT: scope != SUBMIT, ADMIN: False}


@pytest.mark.parametrize(("method", "path", "scope"), WITH_IDS, ids=ids(WITH_IDS))
def test_another_tenants_objects_are_not_there_rather_than_forbidden(
    api: TestClient, auth: dict[str, str], others: dict[str, str], method: str, path: str, scope: str
) -> None:
    names = set(re.findall(r"\{(\w+)", path))
    assert names <= set(others), "say in `others` how another tenant's object of this kind is made"

    foreign, missing = (api.request(method, filled(path, values), headers=auth) for values in (others, {}))

    if names <= SHARED:
        assert (foreign.status_code, missing.status_code) == (200, 404)
        return
    assert (foreign.status_code, missing.status_code) == (404, 404)
    for value in others.values():
        foreign_text = foreign.text.replace(value, "nobody")
        if value in foreign.text:
            assert foreign_text == missing.text, "the two replies differ, which tells that the object exists"


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/v1/batches", {"json": {"input_file_id": "file_id", "endpoint": "/v1/chat/completions"}}),
        ("GET", "/v1/batches", {"params": {"after": "batch_id"}}),
        ("GET", "/v1/files", {"params": {"after": "file_id"}}),
        ("GET", "/v1/spend", {"params": {"batch": "batch_id"}}),
        ("GET", "/v1/spend", {"params": {"tenant": "tenant"}}),
        ("GET", "/v1/caps", {"params": {"tenant": "tenant"}}),
        ("GET", "/v1/files", {"headers": {"Allotd-Tenant": "tenant"}}),
        ("POST", "/v1/feedback", {"json": {"batch_id": "batch_id", "custom_id": "a", "correct": True}}),
    ],
)
def test_another_tenants_ids_are_not_there_in_bodies_questions_and_headers(
    api: TestClient,
    auth: dict[str, str],
    others: dict[str, str],
    method: str,
    path: str,
    options: dict[str, dict[str, Any]],
) -> None:
    for part in options.values():
        part |= {key: others[value] for key, value in part.items() if value in others}
    if "json" in options and path == "/v1/batches":
        options["json"]["completion_window"] = "24h"
    headers = auth | options.pop("headers", {})

    reply = api.request(method, path, headers=headers, **options)  # type: ignore[arg-type]

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
