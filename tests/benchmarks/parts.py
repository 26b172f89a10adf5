"""allotd's parts as a bench runs them: waited for without disturbing them, frozen while others run, and metered."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from models.tables import Batch
from scheduler.database import reading
from scheduler.states import BATCH_FINAL, BatchState
from tests.deployment import Deployment

PARTS = ("daemon", "worker")
LOOK_S = 0.5


def wait_for_batch(made: Deployment, batch_id: str, timeout_s: float) -> None:
    """Look now and then, without the write lock that the parts need, until the batch is complete."""
    deadline = time.monotonic() + timeout_s
    while True:
        with reading(made.sessions) as session:
            state = session.get_one(Batch, batch_id).state
        if state in BATCH_FINAL:
            break
        assert time.monotonic() < deadline, f"the batch is {state} after {timeout_s} s: {made.states()}"
        time.sleep(LOOK_S)
    assert state == BatchState.COMPLETED, state


@contextmanager
def frozen(made: Deployment) -> Iterator[None]:
    """Without allotd's parts taking any processor time."""
    for part in PARTS:
        made.kill(part, signal.SIGSTOP)
    try:
        yield
    finally:
        for part in PARTS:
            made.kill(part, signal.SIGCONT)


def cpu_seconds(made: Deployment) -> dict[str, float]:
    """The processor time that each part has taken so far."""
    spent = {part: psutil.Process(made.processes[part].pid).cpu_times() for part in PARTS}
    return {part: times.user + times.system for part, times in spent.items()}
