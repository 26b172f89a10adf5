"""The sandbox: work that does not end is ended, and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from scheduler.sandbox import OutOfTime, Sandbox, Sandboxes

ENDLESS = "9^{9^{9^{9}}}"
USE_AND_DIE = """
import os, signal
from scheduler.sandbox import Sandbox
sandbox = Sandbox()
sandbox.call("canonical", "x")
print(sandbox.process_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_serves_many_jobs(sandbox: Sandbox) -> None:
    first = sandbox.call("canonical", "1 + x")
    process_id = sandbox.process_id
    second = sandbox.call("canonical", "2 + x")

    assert (first, second) == ("x + 1", "x + 2")
    assert sandbox.process_id == process_id


def test_a_job_that_fails_has_no_result(sandbox: Sandbox) -> None:
    result = sandbox.call("fits_schema", "{", "{}")

    assert result is None


def test_a_job_that_does_not_end_is_ended_and_the_next_one_done(sandbox: Sandbox) -> None:
    with pytest.raises(OutOfTime):
        sandbox.call("canonical", ENDLESS)

    assert sandbox.call("canonical", "1 + x") == "x + 1"


def test_a_process_that_was_ended_between_two_jobs_is_replaced(sandbox: Sandbox) -> None:
    sandbox.call("canonical", "x")
    process_id = sandbox.process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGKILL)
    os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)

    result = sandbox.call("canonical", "1 + x")

    assert result == "x + 1"


def test_a_closed_sandbox_leaves_no_process(sandbox: Sandbox) -> None:
    sandbox.call("canonical", "x")
    process_id = sandbox.process_id

    sandbox.close()

    assert process_id is not None
    assert not is_alive(process_id)


def test_a_sandbox_ends_when_its_owner_is_killed() -> None:
    owner = subprocess.run([sys.executable, "-c", USE_AND_DIE], capture_output=True, text=True, check=False)
    process_id = int(owner.stdout)

    deadline = time.monotonic() + 10
    while is_alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert not is_alive(process_id)


def test_one_job_at_a_time_needs_one_process() -> None:
    sandboxes = Sandboxes(processes_max=4)

    for text in ("x", "y", "z"):
        sandboxes.call("canonical", text)
    processes = [sandbox.process_id for sandbox in sandboxes.members if sandbox.process_id is not None]
    sandboxes.close()

    assert len(processes) == 1
