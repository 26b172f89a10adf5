"""Parts are kept running, and nothing of them is left: with real processes, some of which do not want to go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from scheduler import processes
from scheduler.supervision import backoff_s

WAIT_S = 20.0
MARK = "ALLOTD_TEST_MARK"

SLEEPER = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
FAMILY = """
import subprocess, sys, time
child = f"import os; os.setsid(); {DEAF}"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
"""
ORPHANS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(600)"])
sys.exit(3)
"""


class Up:
    """A supervisor in a process of its own, as `allotd up` runs it."""

    def __init__(self, directory: Path, *parts: str, ready: str = "lambda: True") -> None:
        self.directory = directory
        self.mark = str(directory)  # in the environment of whatever descends from us, wherever it moves
        self.output = directory.with_name(f"output-{time.monotonic_ns()}")
        code = textwrap.dedent("""
            import sys
            from pathlib import Path
            from scheduler.errors import SchedulerError
            from scheduler.supervision import Part, StopAsked, Supervisor, guarded, only_one

            directory, *codes = sys.argv[1:]

            def say(line): print(line, flush=True)

            def work():
                supervisor = Supervisor(Path(directory), say)
                supervisor.listen()
                try:
                    for number, code in enumerate(codes):
                        part = Part(
                            name=f"part{number}", command=[sys.executable, "-c", code], is_ready=READY,
                            ready_timeout_s=2.0, stop_timeout_s=1.0, stop_stage=number,
                        )
                        supervisor.start(part)
                        supervisor.wait_ready(part.name)
                    say("all ready")
                    supervisor.watch()
                except StopAsked:
                    say("stopping")
                    return 0
                except SchedulerError as error:
                    say(error.message)
                    return 1
                finally:
                    supervisor.stop()

            try:
                with only_one(Path(directory), say):
                    sys.exit(guarded(work))
            except SchedulerError as error:
                say(error.message)
                sys.exit(1)
        """).replace("READY", ready)
        program = directory.with_suffix(".py")
        program.write_text(code)
        with self.output.open("w") as output:
            command = [sys.executable, str(program), str(directory), *parts]
            environment = {**os.environ, MARK: self.mark}
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str) -> None:
        assert processes.wait_until(lambda: words in self.said or self.process.poll() is not None, WAIT_S), self.said
        assert words in self.said

    def sleepers(self) -> set[int]:
        """The ids of the processes that sleep for this run, also of earlier runs on the same directory."""
        return {process.pid for process in psutil.process_iter() if sleeps_for(process, self.mark)}

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_S)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Up]]:
    """Starts supervisors; kills whatever they failed to stop."""
    started: list[Up] = []

    def make(*parts: str, ready: str = "lambda: True") -> Up:
        started.append(Up(directory, *parts, ready=ready))
        return started[-1]

    yield make
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
        for pid in up.sleepers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_parts_start_and_one_interrupt_stops_them_all(directory: Path, start: Callable[..., Up]) -> None:
    up = start(SLEEPER, SLEEPER)
    up.wait_for("all ready")
    assert len(up.sleepers()) == 2

    code = up.interrupt()

    assert code == 0
    assert up.sleepers() == set()


def test_a_part_that_ignores_sigterm_is_killed_and_named(directory: Path, start: Callable[..., Up]) -> None:
    up = start(DEAF)
    up.wait_for("all ready")
    assert processes.wait_until(lambda: "deaf" in (directory / "logs/part0.log").read_text(), WAIT_S)

    up.interrupt()

    assert "part0 did not finish in time and is killed" in up.said
    assert up.sleepers() == set()


def test_a_deaf_grandchild_in_a_session_of_its_own_is_not_left_behind(
    directory: Path, start: Callable[..., Up]
) -> None:
    up = start(FAMILY.replace("{DEAF}", DEAF))
    up.wait_for("all ready")
    assert processes.wait_until(lambda: "deaf" in (directory / "logs/part0.log").read_text(), WAIT_S)

    up.interrupt()

    assert up.sleepers() == set()


def test_the_orphans_of_a_dead_part_are_ended_before_it_starts_again(directory: Path, start: Callable[..., Up]) -> None:
    up = start(ORPHANS)
    up.wait_for("all ready")

    up.wait_for("starting it again in 2 s")

    assert len(up.sleepers()) <= 1
    up.interrupt()
    assert up.sleepers() == set()


def test_a_dead_part_is_started_again(directory: Path, start: Callable[..., Up]) -> None:
    up = start(SLEEPER)
    up.wait_for("all ready")
    (first,) = up.sleepers()

    os.kill(first, signal.SIGKILL)

    up.wait_for("part0 ended with signal SIGKILL; starting it again in 0.5 s")
    assert processes.wait_until(lambda: bool(up.sleepers() - {first}), WAIT_S)
    up.interrupt()


def test_the_wait_between_restarts_doubles_up_to_a_cap() -> None:
    waits = [backoff_s(deaths) for deaths in (1, 2, 3, 7, 100_000)]

    assert waits == [0.5, 1.0, 2.0, 30.0, 30.0]


def test_a_part_that_dies_while_starting_shows_its_last_words(directory: Path, start: Callable[..., Up]) -> None:
    up = start(SLEEPER, "print('no such model'); raise SystemExit(7)", ready="lambda: number == 0")

    code = up.process.wait(WAIT_S)

    assert code == 1
    assert "part1 ended with exit code 7 while it was starting." in up.said
    assert "  no such model" in up.said
    assert up.sleepers() == set()


def test_a_part_that_is_never_ready_is_given_up(directory: Path, start: Callable[..., Up]) -> None:
    up = start(SLEEPER, ready="lambda: False")

    code = up.process.wait(WAIT_S)

    assert code == 1
    assert "part0 was not ready after 2 s." in up.said
    assert up.sleepers() == set()


def test_an_interrupt_while_starting_stops_at_once(directory: Path, start: Callable[..., Up]) -> None:
    up = start(SLEEPER, ready="lambda: False")
    assert processes.wait_until(lambda: len(up.sleepers()) == 1, WAIT_S)

    up.interrupt()

    assert "stopping" in up.said
    assert up.sleepers() == set()


def test_a_second_supervisor_of_the_same_directory_is_refused(directory: Path, start: Callable[..., Up]) -> None:
    first = start(SLEEPER)
    first.wait_for("all ready")

    second = start(SLEEPER)

    assert second.process.wait(WAIT_S) == 1
    assert f"allotd is already running on {directory} (process {first.process.pid})." in second.said
    first.process.send_signal(signal.SIGINT)
    first.process.wait(WAIT_S)


def test_kill_9_of_the_visible_process_leaves_nothing(directory: Path, start: Callable[..., Up]) -> None:
    up = start(SLEEPER, DEAF)
    up.wait_for("all ready")

    up.process.kill()
    up.process.wait(WAIT_S)

    assert processes.wait_until(lambda: up.sleepers() == set(), WAIT_S)


def test_kill_9_of_the_supervising_child_leaves_nothing(directory: Path, start: Callable[..., Up]) -> None:
    up = start(SLEEPER, FAMILY.replace("{DEAF}", DEAF))
    up.wait_for("all ready")
    (supervisor,) = psutil.Process(up.process.pid).children()

    supervisor.kill()

    assert up.process.wait(WAIT_S) == 128 + signal.SIGKILL
    assert up.sleepers() == set()


def test_what_a_killed_run_left_behind_is_ended_by_the_next(directory: Path, start: Callable[..., Up]) -> None:
    first = start(DEAF)
    first.wait_for("all ready")
    assert processes.wait_until(lambda: "deaf" in (directory / "logs/part0.log").read_text(), WAIT_S)
    (supervisor,) = psutil.Process(first.process.pid).children()
    first.process.send_signal(signal.SIGSTOP)  # the guard cannot act any more
    supervisor.kill()
    first.process.kill()
    first.process.wait(WAIT_S)
    left = first.sleepers()
    assert len(left) == 1

    second = start(SLEEPER)
    second.wait_for("all ready")

    assert "Ended 1 processes that an earlier allotd left behind" in second.said
    assert not left & second.sleepers()
    second.interrupt()


def test_the_record_of_another_process_with_the_same_id_ends_nobody(directory: Path, start: Callable[..., Up]) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPER])
    directory.mkdir()
    record = f'{{"boot": "{processes.boot_id()}", "processes": [[{stranger.pid}, 1]]}}'
    (directory / "up.processes.json").write_text(record)

    up = start(SLEEPER)
    up.wait_for("all ready")
    up.interrupt()

    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_whose_name_holds_brackets_and_spaces_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "odd) S 1 (name"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "600"])
    time.sleep(0.1)

    found = processes.running()[child.pid]

    assert found.parent == os.getpid()
    child.kill()
    child.wait()


def sleeps_for(process: psutil.Process, mark: str) -> bool:
    """Whether this is a sleeping part, or a child of one, of the run with this mark."""
    try:
        command = process.cmdline()
        return bool(command[1:2] == ["-c"] and process.environ().get(MARK) == mark)
    except psutil.Error:
        return False
