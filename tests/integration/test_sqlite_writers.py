"""Several processes write to one SQLite file as hard as they can: none is told that it is locked, none starves."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

from sqlalchemy import text

from scheduler.database import open_database

WRITERS = 4
SECONDS = 2.0
BUSY_S = 0.02
"""How long one of them keeps the lock each time, as reading in a file does."""


_barrier: Barrier | None = None


def _share(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 (a barrier reaches a pool's processes by inheritance only)
    _barrier = barrier


def write_for_a_while(url: str, hold_s: float) -> list[float]:
    """Write again and again without a pause; how long each write waited for its turn."""
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    assert _barrier is not None
    _barrier.wait(60)
    waited, end = [], time.monotonic() + SECONDS
    while time.monotonic() < end:
        asked = time.monotonic()
        with engine.begin() as connection:
            waited.append(time.monotonic() - asked)
            connection.execute(text("INSERT INTO numbers VALUES (1)"))
            time.sleep(hold_s)
    engine.dispose()
    return waited


def test_writers_of_several_processes_take_turns(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/allotd.db"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (n INTEGER)"))
    spawn = multiprocessing.get_context("spawn")

    with ProcessPoolExecutor(WRITERS, mp_context=spawn, initializer=_share, initargs=(spawn.Barrier(WRITERS),)) as pool:
        holds = [BUSY_S, *[0.0] * (WRITERS - 1)]
        running = [pool.submit(write_for_a_while, url, hold_s) for hold_s in holds]
        waits = [each.result(timeout=120) for each in running]

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM numbers")) == sum(map(len, waits))
    engine.dispose()
    assert min(map(len, waits)) >= sum(map(len, waits)) / (10 * WRITERS), [len(each) for each in waits]
    assert max(max(each) for each in waits) < SECONDS
