"""How `allotd up` keeps its parts running: started in order, restarted when they die, and all gone when it ends."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from scheduler import processes
from scheduler.errors import Conflict, SchedulerError

POLL_S = 0.1
RECORD_EVERY_S = 2.0
ASK_EVERY_S = 1.0
"""How often a part that has been starting for a while is asked whether it is ready; before, ever less often."""
BACKOFF_S = 0.5
"""How long a part that died waits for its first restart; doubled each time."""
BACKOFF_MAX_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A part that ran this long starts again with the shortest backoff."""
LAST_GRACE_S = 3.0
"""What outlived its own part gets this long between SIGTERM and SIGKILL."""
LOG_BYTES_MAX = 16 * 1024 * 1024
"""A longer log is put aside when its part starts."""
TAIL_LINES = 15
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

RECORD = "up.processes.json"
LOCK = "up.lock"

Say = Callable[[str], None]


class PartFailed(SchedulerError):
    """A part of allotd did not start; its last words say why."""

    code = "part_failed"


class StopAsked(Exception):
    """Somebody pressed Ctrl-C or sent SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process that `allotd up` runs, and when it counts as ready."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_ready: Callable[[], bool] = lambda: True
    ready_timeout_s: float | None = 60.0
    """None for a language model, which may take an hour to load."""
    stop_stage: int = 0
    """Parts of one stage are stopped together; a stage begins when the one before is done."""
    stop_timeout_s: float = 20.0
    """How long it may finish its work before it is killed."""


@dataclass(kw_only=True)
class _Child:
    part: Part
    process: subprocess.Popen[bytes]
    started_at: float
    deaths: int = 0
    restart_at: float | None = None


class Supervisor:
    """Starts parts, watches over them, and stops them with everything they started."""

    def __init__(self, directory: Path, say: Say) -> None:
        self._logs = directory / "logs"
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._record_path = directory / RECORD
        self._say = say
        self._children: dict[str, _Child] = {}
        self._asked: list[signal.Signals] = []
        self._recorded_at = 0.0

    def listen(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP ask this process to stop."""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda received, _frame: self._asked.append(signal.Signals(received)))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def start(self, part: Part) -> None:
        """Start a part without waiting for it."""
        self._children[part.name] = _Child(part=part, process=self._spawn(part), started_at=time.monotonic())
        self._record()

    def wait_ready(self, name: str) -> None:
        """Wait for a part to be ready. Raises PartFailed with the end of its log where it dies or takes too long."""
        child = self._children[name]
        pause_s = POLL_S
        while not child.part.is_ready():
            if (code := child.process.poll()) is not None:
                raise PartFailed(f"{name} ended with {_ending(code)} while it was starting.{self._tail(name)}")
            timeout_s = child.part.ready_timeout_s
            if timeout_s is not None and time.monotonic() - child.started_at > timeout_s:
                raise PartFailed(f"{name} was not ready after {timeout_s:.0f} s.{self._tail(name)}")
            self._pause(pause_s)
            pause_s = min(ASK_EVERY_S, pause_s * 1.3)

    def watch(self) -> None:
        """Restart what dies, until somebody asks to stop; then raises StopAsked."""
        while True:
            self._pause()
            for child in self._children.values():
                self._look_after(child)

    def check(self) -> None:
        """Raises StopAsked where somebody asks to stop, and PartFailed with the end of its log where a part is dead."""
        self._pause()
        for name, child in self._children.items():
            if (code := child.process.poll()) is not None:
                raise PartFailed(f"{name} ended with {_ending(code)}.{self._tail(name)}")

    def stop(self) -> None:
        """Ask the parts to finish, stage by stage; then end whatever is left of them. Asked again, kill at once."""
        self._asked.clear()
        for stage in sorted({child.part.stop_stage for child in self._children.values()}):
            self._stop_stage([child for child in self._children.values() if child.part.stop_stage == stage])
        processes.end(lambda: processes.descendants([os.getpid()]), 0.0 if self._asked else LAST_GRACE_S)
        for child in self._children.values():
            child.process.wait()
        processes.reap_orphans(())
        self._record_path.unlink(missing_ok=True)

    def _spawn(self, part: Part) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        log = self._log(part.name)
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 (our own programs)
                part.command,
                env={**os.environ, **part.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                preexec_fn=lambda: processes.die_with_parent(parent),  # noqa: PLW1509 (one thread, system calls only)
            )

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                child.process, child.started_at, child.restart_at = self._spawn(child.part), now, None
                self._record()
            return
        if (code := child.process.poll()) is None:
            return
        self._end_strays()
        child.deaths = 1 if now - child.started_at > HEALTHY_AFTER_S else child.deaths + 1
        delay_s = backoff_s(child.deaths)
        child.restart_at = now + delay_s
        name = child.part.name
        self._say(f"{name} ended with {_ending(code)}; starting it again in {delay_s:g} s (see {self._log(name)})")

    def _pause(self, seconds: float = POLL_S) -> None:
        """One beat of every loop: leave if asked to; now and then bury dead orphans and refresh the record."""
        if not self._asked:
            time.sleep(seconds)  # ended early by no signal, so never long
        if self._asked:
            raise StopAsked
        if time.monotonic() - self._recorded_at > RECORD_EVERY_S:
            processes.reap_orphans(child.process.pid for child in self._children.values())
            self._record()

    def _stop_stage(self, children: list[_Child]) -> None:
        left = [child for child in children if child.process.poll() is None]
        for child in left:
            child.process.terminate()
        began = time.monotonic()
        while left and not self._asked:
            waited_s = time.monotonic() - began
            left = [c for c in left if c.process.poll() is None and waited_s < c.part.stop_timeout_s]
            time.sleep(POLL_S / 2)
        for child in children:
            if child.process.poll() is None:
                self._say(f"{child.part.name} did not finish in time and is killed")
            _kill_tree(child.process)

    def _end_strays(self) -> None:
        """End what a dead part had started: it may hold the port or the GPU that the part needs again."""

        def strays() -> list[processes.Process]:
            ours = processes.descendants([os.getpid()])
            kept = {child.process.pid for child in self._children.values()}
            kept.update(process.pid for process in processes.descendants(kept))
            return [process for process in ours if process.pid not in kept]

        processes.end(strays, LAST_GRACE_S)

    def _record(self) -> None:
        """Write down who is running, for the next `allotd up` to clean up if this one is killed."""
        self._recorded_at = time.monotonic()
        identities = [process.identity for process in processes.descendants([os.getpid()])]
        draft = self._record_path.with_suffix(".new")
        draft.write_text(json.dumps({"boot": processes.boot_id(), "processes": identities}))
        draft.replace(self._record_path)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _tail(self, name: str) -> str:
        lines = self._log(name).read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(["", f"The end of {self._log(name)}:", *(f"  {line}" for line in lines)])


@contextmanager
def only_one(directory: Path, say: Say) -> Iterator[None]:
    """Hold the data directory. Raises Conflict where another `allotd up` does; ends what a killed one left behind."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / LOCK).open("a+") as lock:
        _lock(lock, directory)
        _clear_leftovers(directory / RECORD, say)
        yield


def guarded(work: Callable[[], int]) -> int:
    """Do `work` in a child process, with this one as its guard; returns its exit code.

    Each outlives a kill -9 of the other just long enough to leave nothing behind: the guard adopts and ends whatever
    the worker had started; the worker stops in good order when the guard is gone. Call it before any thread is started.
    """
    guard = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # none may come between the fork and the handlers
    worker = os.fork()
    if worker == 0:
        _exit_with(work, guard)
    processes.adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: _pass_on(worker, signal.Signals(received)))
    signal.signal(signal.SIGHUP, lambda *_: _pass_on(worker, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    status = os.waitpid(worker, 0)[1]
    processes.end(lambda: processes.descendants([os.getpid()]), LAST_GRACE_S)
    processes.reap_orphans(())
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def backoff_s(deaths: int) -> float:
    """How long to wait after so many deaths in a row."""
    return float(min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(deaths - 1, 16)))


def _exit_with(work: Callable[[], int], guard: int) -> None:
    """The worker's side of the fork; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)  # the terminal's Ctrl-C goes to the guard, which passes it on
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # and writing from the background is allowed
        processes.adopt_orphans()
        processes.die_with_parent(guard)
        code = work()
    finally:
        with suppress(OSError, ValueError):
            _flush()
        os._exit(code)


def _flush() -> None:
    import sys  # noqa: PLC0415

    sys.stdout.flush()
    sys.stderr.flush()


def _pass_on(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a part and everything below it that moved to other groups; what is orphaned already is found at the end."""
    for below in processes.descendants([process.pid]):
        processes.send(below, signal.SIGKILL)
    process.kill()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _lock(lock: TextIO, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        raise Conflict(
            f"allotd is already running on {directory} (process {holder}). Stop it first, or give another --data-dir."
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _clear_leftovers(record: Path, say: Say) -> None:
    try:
        listed: Any = json.loads(record.read_text())
        identities = [(int(pid), int(started)) for pid, started in listed["processes"]]
        same_boot = listed["boot"] == processes.boot_id()
    except (OSError, ValueError, TypeError, KeyError):
        return

    def left() -> list[processes.Process]:
        found = processes.with_identities(identities)
        return [*found, *processes.descendants(process.pid for process in found)]

    if same_boot and (count := processes.end(left, LAST_GRACE_S)):
        say(f"Ended {count} processes that an earlier allotd left behind when it was killed.")
    record.unlink(missing_ok=True)
