"""How long after a worker's kill -9 all that it ran is running elsewhere, in heartbeats. At production's times.

From the kill to the moment at which every query of the dead worker has an attempt that another worker has begun: the
daemon has noticed, settled the dead waves at what was reported, planned again, sent, and the other worker has claimed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Attempt, Worker
from scheduler.database import reading
from scheduler.states import AttemptState
from tests.benchmarks.figures import Figure, print_figures
from tests.deployment import Deployment, deployment, sums
from tests.services import postgres_server, valkey_server

ROUNDS = 3
QUERIES = 64
HEARTBEAT_S = 5.0
HEARTBEATS_MAX = 2.0
START_TIMEOUT_S = 240.0
PRODUCTION = {"tick_s": "0.2", "heartbeat_s": str(HEARTBEAT_S), "lease_s": "15", "redispatch_s": "30"}
ENDLESS = json.dumps({"time_scale": 1.0, "tokens_per_s": 0.5, "tokens_median": 60.0})
"""Nothing ends while we look."""


def run() -> list[Figure]:
    """Kill a worker a few times on each database; print every round."""
    figures = []
    with postgres_server() as postgres:
        for name in ("PostgreSQL", "SQLite"):
            rounds = []
            for number in range(ROUNDS):
                with tempfile.TemporaryDirectory() as directory:
                    url = postgres.new_database() if name == "PostgreSQL" else f"sqlite:///{directory}/allotd.db"
                    rounds.append(measure(url, Path(directory)) / HEARTBEAT_S)
                print(f"{name:<12} round {number}  recovered after {rounds[-1] * HEARTBEAT_S:.1f} s")
            title = f"recovery from a worker's kill -9 / heartbeat of {HEARTBEAT_S:g} s, {name}"
            figures.append(Figure(name=title, rounds=tuple(rounds), at_most=HEARTBEATS_MAX))
    return figures


def measure(url: str, logs: Path) -> float:
    """Seconds from the kill until everything runs elsewhere."""
    with (
        valkey_server() as valkey,
        deployment(url, valkey.url, logs, fake_engine=ENDLESS, in_flight_max=str(QUERIES), **PRODUCTION) as made,
    ):
        made.submit(made.add_tenant(), sums(QUERIES))
        made.start("worker-1")
        made.start("daemon")
        made.wait_for(lambda session: len(running(session)) == QUERIES, START_TIMEOUT_S)
        made.start("worker-2")
        made.wait_for(lambda session: session.scalar(select(func.count()).select_from(Worker)) == 2, START_TIMEOUT_S)
        time.sleep(1.0)
        begun = time.monotonic()
        made.kill("worker-1")
        wait_until_elsewhere(made, QUERIES)
        return time.monotonic() - begun


def wait_until_elsewhere(made: Deployment, count: int) -> None:
    """Wait until as many second attempts run."""
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        with reading(made.sessions) as session:
            if sum(number > 1 for number in running(session)) == count:
                return
        time.sleep(0.05)
    raise TimeoutError(f"{made.states()}")


def running(session: Session) -> Sequence[int]:
    """The numbers, from 1 for each query, of the attempts that run."""
    return session.scalars(select(Attempt.number).where(Attempt.state == AttemptState.RUNNING)).all()


if __name__ == "__main__":
    print_figures(run())
