"""Which processes descend from which, and how to end all of them. Linux only: it reads /proc."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here because a forked child should not load libraries


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A process. Its id alone may be another's tomorrow; with the moment it started it cannot."""

    pid: int
    started_ticks: int
    parent: int
    is_zombie: bool

    @property
    def identity(self) -> tuple[int, int]:
        """What no other process since this boot shares."""
        return self.pid, self.started_ticks


def running() -> dict[int, Process]:
    """Every process of this machine, by its id."""
    processes = (_read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {process.pid: process for process in processes if process is not None}


def descendants(roots: Iterable[int]) -> list[Process]:
    """The processes below `roots`, children before grandchildren, whatever groups or sessions they moved to."""
    children: dict[int, list[Process]] = {}
    for process in running().values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = list(roots)
    while waiting:
        below = children.pop(waiting.pop(0), [])
        found.extend(below)
        waiting.extend(process.pid for process in below)
    return found


def with_identities(identities: Iterable[tuple[int, int]]) -> list[Process]:
    """Those of the named processes that still run."""
    wanted = set(identities)
    return [process for process in running().values() if process.identity in wanted]


def boot_id() -> str:
    """What tells this boot of the machine from every other: process identities are only good within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none gets out of sight."""
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Be sent `number` when the parent dies. For a child just forked by `parent`."""
    _LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), number)


def send(process: Process, number: signal.Signals) -> None:
    """Signal a process, unless it is gone or its id has passed to another."""
    now = _read(process.pid)
    if now is not None and now.identity == process.identity:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def end(find: Callable[[], list[Process]], grace_s: float) -> int:
    """End what `find` finds: first by SIGTERM, after `grace_s` by SIGKILL. Returns how many there were."""
    found = _alive(find)
    for process in found:
        send(process, signal.SIGTERM)
    wait_until(lambda: not _alive(find), grace_s)
    while left := _alive(find):  # again and again: what is being killed may still start something
        for process in left:
            send(process, signal.SIGKILL)
        time.sleep(POLL_S)
    return len(found)


def reap_orphans(own: Iterable[int]) -> None:
    """Take leave of dead adopted processes; `own` are children somebody else waits for."""
    mine, spared = os.getpid(), set(own)
    for process in running().values():
        if process.parent == mine and process.is_zombie and process.pid not in spared:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def wait_until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for something to be so; returns whether it came to be."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _alive(find: Callable[[], list[Process]]) -> list[Process]:
    return [process for process in find() if not process.is_zombie]


def _read(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold spaces and brackets
    return Process(pid=pid, parent=int(fields[1]), started_ticks=int(fields[19]), is_zombie=fields[0] in "ZX")
