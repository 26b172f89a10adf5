"""A whole allotd for tests that know nothing of its inside: broker, API, daemon and worker, each a process."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.deployment import ROOT, Deployment, deployment
from tests.llm import LlmServer
from tests.services import Valkey, free_port

READY_TIMEOUT_S = 90.0
CALM = {"tick_s": "0.2", "heartbeat_s": "5", "lease_s": "15", "redispatch_s": "30"}
"""Production's times, for a model server that shares its few cores with us."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """A running allotd, and the model it serves."""

    url: str
    admin_key: str
    model: str

    def admin(self) -> httpx.Client:
        """A client with the admin key."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.admin_key}"}, trust_env=False)

    def new_tenant(self) -> dict[str, Any]:
        """A tenant with its first key."""
        with self.admin() as client:
            reply = client.post("/v1/tenants", json={"name": f"tenant-{secrets.token_hex(4)}"})
        reply.raise_for_status()
        tenant: dict[str, Any] = reply.json()
        return tenant

    def client(self, key: str) -> OpenAI:
        """OpenAI's own client, unmodified."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def cap(self, tenant: dict[str, Any], limit_usd: str) -> None:
        """Limit what a tenant spends in total."""
        with self.admin() as client:
            body = {"tenant": tenant["name"], "limit_usd": limit_usd, "period": "total"}
            client.post("/v1/caps", json=body).raise_for_status()


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.vllm)])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Stack]:
    """allotd on the fake engine, and on a real vLLM server with a real small model."""
    if request.param == "fake":
        settings, model = {"engine": "fake"}, "fake"
    else:
        llm: LlmServer = request.getfixturevalue("llm")
        settings, model = {"engine": "vllm", "llm_url": llm.url, **CALM}, llm.name
    with running(tmp_path_factory.mktemp(request.param), valkey.url, model, **settings) as made:
        yield made


@contextmanager
def running(directory: Path, broker_url: str, model: str, **settings: str) -> Iterator[Stack]:
    """The stack's processes, ready for work; all ended at the end."""
    admin_key = f"sk-allotd-{secrets.token_urlsafe(32)}"
    options = {"admin_key": admin_key, **settings}
    with deployment(f"sqlite:///{directory}/allotd.db", broker_url, directory, **options) as made:
        port = free_port()
        start_api(made, port)
        made.start("daemon")
        made.start("worker")
        stack = Stack(url=f"http://127.0.0.1:{port}", admin_key=admin_key, model=model)
        wait_until_ready(stack, made)
        with stack.admin() as client:
            price = {"model": model, "prompt_usd_per_mtok": "0.05", "completion_usd_per_mtok": "0.20"}
            client.post("/v1/prices", json=price).raise_for_status()
        yield stack


def start_api(made: Deployment, port: int) -> None:
    """The API as `allotd api` runs it."""
    command = [sys.executable, "-m", "scheduler.cli", "api", "--port", str(port)]
    with (made.logs / "api.log").open("ab") as log:
        made.processes["api"] = Popen(
            command, cwd=ROOT, env=made.environment(), stdout=log, stderr=log, start_new_session=True
        )


def wait_until_ready(stack: Stack, made: Deployment) -> None:
    """Wait until /readyz says so and the model is listed."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    told = "nothing"
    with stack.admin() as client:
        while time.monotonic() < deadline:
            try:
                ready = client.get("/readyz")
                told = ready.text
                models = client.get("/v1/models").json()["data"] if ready.is_success else []
            except httpx.TransportError:
                models = []
            if stack.model in [model["id"] for model in models]:
                return
            time.sleep(0.1)
    logs = "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(made.logs.glob("*.log")))
    raise AssertionError(f"allotd was not ready after {READY_TIMEOUT_S} s: {told}\n{logs}")


@pytest.fixture
def tenant(stack: Stack) -> dict[str, Any]:
    """A tenant of this test's own."""
    return stack.new_tenant()


@pytest.fixture
def client(stack: Stack, tenant: dict[str, Any]) -> Iterator[OpenAI]:
    """OpenAI's client with that tenant's key."""
    with stack.client(tenant["key"]["key"]) as made:
        yield made
