"""Work on strangers' input that may never end, done in a process that is killed when its time is up."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import select
import subprocess
import sys

WALL_S = 60.0
"""How long an answer is waited for: far above its limit of CPU time, as the machine may be busy."""
PROCESSES_MAX = os.cpu_count() or 1
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""All of the environment that a sandbox sees: parsers of strangers' text need no keys and no database address."""


class OutOfTime(Exception):
    """The work took more time or memory than it is given; its process was ended."""


class Sandbox:
    """One process of `scheduler.sandboxed`, started at its first use and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def process_id(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    def call(self, job: str, *arguments: str) -> object:
        """Have a job done; None where it failed. Raises OutOfTime."""
        process = self._started()
        request = json.dumps([job, *arguments]).encode() + b"\n"
        try:
            assert process.stdin is not None
            process.stdin.write(request)
            process.stdin.flush()
            line = _read_line(process)
        except OSError:
            line = b""
        if not line:
            self.close()
            raise OutOfTime
        return json.loads(line)

    def close(self) -> None:
        """End the process. Safe to call twice, and in a fork, where the process is somebody else's."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # somebody else ended it between two jobs; that says nothing about the next one
        if self._process is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scheduler.sandboxed"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            )
        return self._process


class Sandboxes:
    """A few sandboxes that threads take in turn; the most recently used first, so that idle ones never start."""

    def __init__(self, processes_max: int = PROCESSES_MAX) -> None:
        self.members = [Sandbox() for _ in range(processes_max)]
        self._idle: queue.LifoQueue[Sandbox] = queue.LifoQueue()
        for sandbox in self.members:
            self._idle.put(sandbox)
        atexit.register(self.close)

    def call(self, job: str, *arguments: str) -> object:
        """Have a job done by the next idle sandbox. Raises OutOfTime."""
        sandbox = self._idle.get()
        try:
            return sandbox.call(job, *arguments)
        finally:
            self._idle.put(sandbox)

    def close(self) -> None:
        """End every process; a later call starts anew."""
        for sandbox in self.members:
            sandbox.close()


def _read_line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of the process's output; empty where it ended or was silent for too long."""
    assert process.stdout is not None
    waiting = select.poll()  # not select(), which fails in a process with more than 1024 open files
    waiting.register(process.stdout, select.POLLIN)
    return process.stdout.readline() if waiting.poll(WALL_S * 1000) else b""
