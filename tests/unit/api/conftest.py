"""The application on an empty SQLite database, spoken to in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy.orm import sessionmaker
from structlog.testing import capture_logs

from scheduler.api.app import create_app
from scheduler.settings import Settings
from scheduler.wiring import Services
from tests.factories import NOW, add_tenant, new_sessions

ADMIN_KEY = "sk-allotd-admin"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No log: what is printed of a fault, with every local, takes longer than the tests."""
    with capture_logs():
        yield


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Small limits, so that tests reach them."""
    return Settings(
        broker_url="redis://127.0.0.1:1/0",
        admin_key=SecretStr(ADMIN_KEY),
        file_bytes_max=200_000,
        body_bytes_max=20_000,
        engine_timeout_s=0.5,
    )


@pytest.fixture(scope="session")
def shared(settings: Settings) -> tuple[Services, FastAPI]:
    """The application, built once because building takes longer than a test; `services` gives it a database."""
    services = Services(settings=settings, sessions=sessionmaker(expire_on_commit=False), clock=lambda: NOW)
    return services, create_app(services)


@pytest.fixture
def services(shared: tuple[Services, FastAPI], tmp_path: Path) -> Iterator[Services]:
    """The services on a database with one served model that has a price, and a clock that stands still."""
    services, _ = shared
    with new_sessions(f"sqlite:///{tmp_path}/allotd.db") as sessions:
        with sessions.begin() as session:
            add_tenant(session, "first")
        services.sessions.configure(bind=sessions.kw["bind"])
        yield services


@pytest.fixture
def api(shared: tuple[Services, FastAPI], services: Services) -> Iterator[TestClient]:
    """A client without a key; a fault of ours is a reply as it is for everybody."""
    with TestClient(shared[1], raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def tenant(api: TestClient) -> dict[str, Any]:
    """A tenant with its first key."""
    return new_tenant(api, "acme")


@pytest.fixture
def auth(tenant: dict[str, Any]) -> dict[str, str]:
    """That tenant's authorization."""
    return bearer(tenant)


def new_tenant(api: TestClient, name: str) -> dict[str, Any]:
    """A tenant made over HTTP."""
    reply = api.post("/v1/tenants", json={"name": name}, headers=ADMIN)
    assert reply.status_code == 200, reply.text
    made: dict[str, Any] = reply.json()
    return made


def bearer(tenant: dict[str, Any]) -> dict[str, str]:
    """The authorization of a tenant's first key."""
    return {"Authorization": f"Bearer {tenant['key']['key']}"}
