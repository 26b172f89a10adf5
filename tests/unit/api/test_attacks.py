"""Clients that mean harm: slow, greedy or nosy ones are cut off, and nothing they send ends up in a log."""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from fastapi.testclient import TestClient
from pydantic import SecretStr

from scheduler.api.app import create_app
from scheduler.api.connections import impatient
from scheduler.logs import configure_logging
from scheduler.processes import wait_until
from scheduler.settings import Settings
from scheduler.tenants import create_tenant
from scheduler.wiring import Services
from tests.factories import MODEL, NOW
from tests.services import free_port
from tests.unit.api.conftest import ADMIN, ADMIN_KEY, bearer, new_tenant

GRACE_S = 0.4
BOUNDARY = "x"
FORM_START = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
).encode()


@pytest.fixture
def impatient_services(services: Services) -> Services:
    """The same database behind an API that waits for nobody."""
    hasty = services.settings.model_copy(
        update={"body_grace_s": GRACE_S, "body_bytes_per_s_min": 10**6, "uploads_per_tenant_max": 1}
    )
    return Services(settings=hasty, sessions=services.sessions, clock=services.clock)


@contextmanager
def serving(services: Services) -> Iterator[int]:
    """The application as `allotd api` serves it, in a thread; gives its port."""
    port = free_port()
    config = uvicorn.Config(
        create_app(services), port=port, log_config=None, http=impatient(services.settings.body_grace_s), ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert wait_until(lambda: server.started, 10)
        yield port
    finally:
        server.should_exit = True
        thread.join()


def head(path: str, length: int, key: str, content_type: str = "application/json") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: a",
        f"Authorization: Bearer {key}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def trickled(port: int, sent: bytes) -> tuple[bytes, float]:
    """What comes back to a client that sends something and then a byte now and then, until it is cut off, and when."""
    began = time.monotonic()
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(sent)
        client.settimeout(0.1)
        while time.monotonic() - began < 20:
            try:
                client.sendall(b"x")
                part = client.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not part:
                break
            came += part
    return came, time.monotonic() - began


def test_slow_heads_and_bodies_are_cut_off_and_their_uploads_make_room_for_others(
    impatient_services: Services, auth: dict[str, str], tenant: dict[str, Any]
) -> None:
    key = tenant["key"]["key"]
    upload = head("/v1/files", 10**5, key, f"multipart/form-data; boundary={BOUNDARY}") + FORM_START
    with serving(impatient_services) as port:
        half_a_head, head_s = trickled(port, b"GET /healthz HTTP/1.1\r\nHost: ")
        slow_body, body_s = trickled(port, head("/v1/chat/completions", 10**4, key) + b'{"model": "')
        slow_upload, upload_s = trickled(port, upload)
        after = httpx.post(
            f"http://127.0.0.1:{port}/v1/files",
            files={"file": ("a", b"{}")},
            data={"purpose": "batch"},
            headers=auth,
            trust_env=False,
        )

    assert half_a_head == b""
    for came in (slow_body, slow_upload):
        assert came.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in came.lower()
        assert b'"code":"request_timeout"' in came
    assert max(head_s, body_s, upload_s) < 15
    assert after.status_code == 200


def test_a_tenant_uploads_only_so_many_files_at_once_and_others_go_on(
    services: Services, api: TestClient, tenant: dict[str, Any]
) -> None:
    narrow = services.settings.model_copy(update={"uploads_per_tenant_max": 1})
    other = new_tenant(api, "other")
    began = head("/v1/files", 10**5, tenant["key"]["key"], f"multipart/form-data; boundary={BOUNDARY}") + FORM_START
    upload = {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch"}, "trust_env": False}
    with (
        serving(Services(settings=narrow, sessions=services.sessions, clock=services.clock)) as port,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        url = f"http://127.0.0.1:{port}/v1/files"
        client.sendall(began)
        assert wait_until(
            lambda: httpx.post(url, headers=bearer(tenant), **upload).status_code == 429,  # type: ignore[arg-type]
            10,
        )

        mine = httpx.post(url, headers=bearer(tenant), **upload)  # type: ignore[arg-type]
        theirs = httpx.post(url, headers=bearer(other), **upload)  # type: ignore[arg-type]

    assert (mine.status_code, mine.json()["error"]["code"]) == (429, "too_many_uploads")
    assert theirs.status_code == 200


def test_a_form_has_one_file_and_few_fields(api: TestClient, auth: dict[str, str]) -> None:
    many_files = [("file", (str(i), b"{}")) for i in range(3)]
    many_fields = {str(i): "x" for i in range(100)} | {"purpose": "batch"}

    files = api.post("/v1/files", files=many_files, data={"purpose": "batch"}, headers=auth)
    fields = api.post("/v1/files", files={"file": ("a", b"{}")}, data=many_fields, headers=auth)

    for reply in (files, fields):
        assert reply.status_code == 400
        assert "Too many" in reply.json()["error"]["message"]


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything this process logs, down to DEBUG, libraries too."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(Settings(log_level="DEBUG", log_format="json"))
    root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_no_log_of_the_whole_application_holds_a_key_or_a_prompt(services: Services, logged: io.StringIO) -> None:
    secret_prompt = "the launch code is 0000"
    with services.sessions.begin() as session:
        _, made = create_tenant(session, "acme", now=NOW)
    settings = services.settings.model_copy(
        update={"llm_api_key": SecretStr("sk-llm-0123456789"), "log_level": "DEBUG"}
    )
    app = create_app(Services(settings=settings, sessions=services.sessions, clock=services.clock))
    routes = [(method, path) for path, each in app.openapi()["paths"].items() for method in each]
    question = {"model": MODEL, "messages": [{"role": "user", "content": secret_prompt}], "max_tokens": 10**12}

    with TestClient(app, raise_server_exceptions=False) as api:
        for headers in ({"Authorization": f"Bearer {made.secret}"}, ADMIN, {"Authorization": "Bearer sk-wrong-key-99"}):
            for method, path in routes:
                api.request(method, path, headers=headers, json=question, params={"api_key": made.secret})
        services.sessions.kw["bind"].dispose()
        made_by_admin = api.post("/v1/tenants/acme/keys", headers=ADMIN).json()["key"]
        broken = Services(settings=settings, sessions=None, clock=services.clock)  # type: ignore[arg-type]
        with TestClient(create_app(broken), raise_server_exceptions=False) as crashing:
            crashing.get("/v1/files", headers={"Authorization": f"Bearer {made.secret}"})

    text = logged.getvalue()
    assert "request_served" in text
    assert "request_crashed" in text
    for secret in (made.secret, made_by_admin, ADMIN_KEY, "sk-wrong-key-99", "sk-llm-0123456789", secret_prompt):
        assert secret not in text


def test_an_admin_key_that_could_be_guessed_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="at least 12"):
        Settings(admin_key=SecretStr("admin"))
