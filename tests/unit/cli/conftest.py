"""A real API on a real port and database, and commands that talk to it as a shell would."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy.orm import Session, sessionmaker

from models.tables import LlmRow, Table
from scheduler.api.app import create_app
from scheduler.cli.exits import exit_code
from scheduler.cli.main import app
from scheduler.database import open_database, sessions
from scheduler.processes import wait_until
from scheduler.settings import Settings
from scheduler.wiring import Services, utc_now
from tests.services import free_port

ADMIN_KEY = "sk-allotd-admin"
MODEL = "fake"


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed for programs."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Allotd = Callable[..., Done]


@pytest.fixture
def allotd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Allotd:
    """Runs a command, with no profile but the one in the test's own directory."""
    monkeypatch.setenv("ALLOTD_PROFILE", str(tmp_path / "profile.json"))
    for name in ("ALLOTD_URL", "ALLOTD_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = exit_code(lambda: app([str(argument) for argument in arguments]))
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


@dataclass(frozen=True, slots=True)
class Server:
    """A running API and its database, where no daemon changes anything."""

    url: str
    services: Services
    sessions: sessionmaker[Session]


@pytest.fixture
def server(tmp_path: Path, allotd: Allotd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An API with an admin key that commands use, and one served model without a price."""
    engine = open_database(f"sqlite:///{tmp_path / 'allotd.db'}")
    Table.metadata.create_all(engine)
    settings = Settings(admin_key=SecretStr(ADMIN_KEY), database_url=str(engine.url))
    services = Services(settings=settings, sessions=sessions(engine), clock=utc_now)
    with services.sessions.begin() as session:
        session.add(LlmRow(name=MODEL, context_tokens=4096, first_seen_at=utc_now(), last_seen_at=utc_now()))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )  # stdout is the command's
    with serving(create_app(services)) as url:
        monkeypatch.setenv("ALLOTD_URL", url)
        monkeypatch.setenv("ALLOTD_API_KEY", ADMIN_KEY)
        yield Server(url, services, services.sessions)
    structlog.reset_defaults()
    engine.dispose()


@pytest.fixture
def priced(server: Server, allotd: Allotd) -> Server:
    """The same, with a price and a tenant named acme."""
    assert allotd("price", "set", MODEL, "--prompt", "1", "--completion", "2").code == 0
    assert allotd("tenant", "create", "acme").code == 0
    return server


@contextmanager
def serving(application: FastAPI) -> Iterator[str]:
    """The application behind uvicorn in a thread; gives its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert wait_until(lambda: server.started, 10)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
