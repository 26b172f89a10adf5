"""The API against its own OpenAPI document: schemathesis sends what the document allows and what it forbids.

Every route of the application takes part, also one that is new. `FUZZ_EXAMPLES=200 pytest` on this file, or
`make fuzz`, tries longer than the tests do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode
from sqlalchemy.orm import Session, sessionmaker
from structlog.testing import capture_logs

from scheduler.api.app import create_app
from scheduler.caps import set_cap
from scheduler.core.periods import Period
from scheduler.files import store_upload
from scheduler.intake import create_batch
from scheduler.requests import ENDPOINT
from scheduler.settings import Settings
from scheduler.tenants import create_tenant
from scheduler.wiring import Services
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, new_sessions
from tests.services import PostgresServer

EXAMPLES = {
    "sqlite": int(os.environ.get("FUZZ_EXAMPLES", "8")),
    "postgresql": int(os.environ.get("FUZZ_EXAMPLES", "5")),
}
"""Of good and of bad requests each, per operation and caller."""
ADMIN_KEY = "sk-allotd-admin"
ALLOWED: dict[str, dict[int, str]] = {
    "GET /readyz": {503: "nothing runs here that would do the work"},
    "POST /v1/batches": {400: "metadata may hold a line's options, and the file may be no input"},
    "POST /v1/batches/dry-run": {400: "no schema tells a file of lines from any other bytes"},
    "POST /v1/caps": {400: "a JSON float may have more decimals than money has"},
    "POST /v1/prices": {400: "a JSON float may have more decimals than money has"},
    "POST /v1/files": {400: "a form is text, in which null and 1e9 are no whole numbers"},
    "POST /v1/webhooks": {400: "the host must be found, and be a public one"},
    "POST /v1/tenants": {400: "no pattern tells the names of time zones"},
    "POST /v1/tenants/{tenant}": {400: "no pattern tells the names of time zones"},
    "POST /v1/chat/completions": {
        400: "a verifier and its reference, and a JSON schema, are checked by what they mean",
        504: "nobody answers here",
    },
}
"""Replies to requests of the right form that the checks would take for faults, each with why it is none."""
NAMES = ("positive_data_acceptance", "not_a_server_error")


@schemathesis.serializer("application/jsonl")
def as_it_is(_context: Any, value: Any) -> bytes:
    """A file's bytes, as which schemathesis sends them."""
    return value.encode() if isinstance(value, str) else bytes(value)


@dataclass(kw_only=True)
class World:
    """An application on a database with one object of each kind, and who asks it."""

    schema: Any
    key: str
    examples: int
    known: dict[str, str] = field(default_factory=dict)
    """Ids that exist, by the name of the parameter that takes them."""

    def operation(self, label: str) -> Any:
        """An operation of the document by its method and path."""
        method, path = label.split(" ", 1)
        return self.schema[path][method]


def application(sessions: sessionmaker[Session]) -> Any:
    """The application as it is deployed, but that no chat waits long for its answer."""
    limits = Settings(
        broker_url="redis://127.0.0.1:1/0",
        admin_key=SecretStr(ADMIN_KEY),
        file_bytes_max=100_000,
        body_bytes_max=100_000,
        engine_timeout_s=0.05,
    )
    return create_app(Services(settings=limits, sessions=sessions, clock=lambda: NOW))


def labels() -> list[str]:
    """Every operation of the document, as `METHOD path`."""
    paths = application(sessionmaker()).openapi()["paths"]
    return sorted(f"{method.upper()} {path}" for path, operations in paths.items() for method in operations)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        directory = request.getfixturevalue("tmp_path_factory").mktemp("openapi")
        yield f"sqlite:///{directory}/allotd.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="module", params=["tenant", "admin"])
def world(request: pytest.FixtureRequest, database: str) -> Iterator[World]:
    """The application on that database, spoken to by a tenant or by an admin."""
    with new_sessions(database) as sessions, capture_logs():
        with sessions.begin() as session:
            known, key = furnished(session, f"acme-{request.param}")
        schema = schemathesis.openapi.from_asgi("/openapi.json", application(sessions))
        examples = EXAMPLES[database.partition(":")[0].partition("+")[0]]
        yield World(schema=schema, key=key if request.param == "tenant" else ADMIN_KEY, examples=examples, known=known)


def furnished(session: Session, name: str) -> tuple[dict[str, str], str]:
    """One object of each kind, and its tenant's key."""
    add_tenant(session, f"seller-to-{name}")
    tenant, key = create_tenant(session, name, now=NOW)
    file = store_upload(session, tenant.id, "a.jsonl", "batch", [b"{}"], bytes_max=100, now=NOW)
    create_batch(session, tenant.id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)
    batch = add_batch(session, tenant)
    query = add_query(session, batch)
    cap = set_cap(session, tenant, limit_nanousd=10**9, period=Period.DAY, now=NOW)
    known = {
        "tenant": tenant.id,
        "key_id": "key_of_nobody",  # the one there is must go on working
        "file_id": file.id,
        "input_file_id": file.id,
        "batch_id": batch.id,
        "batch": batch.id,
        "after": file.id,
        "custom_id": str(query.custom_id),
        "cap_id": cap.id,
        "model": MODEL,
    }
    return known, key.secret


@pytest.mark.parametrize("label", labels())
def test_the_api_is_as_its_document_says(world: World, label: str) -> None:
    operation = world.operation(label)
    bounded = settings(
        max_examples=world.examples,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )

    @seed(1)
    @bounded
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE), is_known=st.booleans())
    def accepts_what_it_allows(case: Any, is_known: bool) -> None:
        if is_known:
            point_at(case, world.known)
        check(case, world, label)

    @seed(1)
    @bounded
    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def refuses_what_it_forbids(case: Any) -> None:
        check(case, world, label)

    accepts_what_it_allows()
    if operation.body or operation.query or operation.headers or operation.path_parameters:
        refuses_what_it_forbids()


def point_at(case: Any, known: dict[str, str]) -> None:
    """Let a good request ask for objects that exist."""
    for part in (case.path_parameters, case.query, case.body):
        if isinstance(part, dict):
            part |= {name: known[name] for name in part.keys() & known.keys()}


def check(case: Any, world: World, label: str) -> None:
    """Send a request and hold its reply against the document."""
    headers = {"Authorization": f"Bearer {world.key}"}
    if world.key == ADMIN_KEY and "Allotd-Tenant" not in (case.headers or {}):
        headers["Allotd-Tenant"] = world.known["tenant"]
    response = case.call(headers=headers)
    excluded = CHECKS.get_by_names(list(NAMES)) if response.status_code in ALLOWED.get(label, {}) else []
    case.validate_response(response, headers=headers, excluded_checks=excluded)


def test_exceptions_are_of_operations_that_exist() -> None:
    assert set(ALLOWED) <= set(labels())
