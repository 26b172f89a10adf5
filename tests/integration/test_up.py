"""`allotd up`: a batch survives Ctrl-C and kill -9 of everything in mid-batch, and nothing is left running."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.tables import ProbeRow, QueryRow
from ops.demo.smollm import fetch_smollm
from scheduler.audit import discrepancies
from scheduler.cli.client import Profile, connect
from scheduler.database import open_database
from scheduler.probing import hidden_states_or_errors
from scheduler.processes import wait_until
from scheduler.states import QueryState
from tests.deployment import QUICK, ROOT, sums

QUERIES = 60
WAIT_S = 180.0
MARK = "ALLOTD_TEST_UP"
PARTS = ("valkey-server", "workers$|celeryd", "cli daemon", "fake_server", "cli api")
HIDDEN_BYTES = 576 * 4
PROBE_PORT = re.compile(r"api_server .*-layer20-.*--port (\d+)")
SLOW = {"time_scale": 1.0, "first_token_s": 0.3, "tokens_per_s": 80, "seed": 3}
"""Slow enough that there is a middle of the batch to interrupt."""


class Up:
    """`allotd up --fake` on one data directory, started as often as a test likes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.output = directory / "output"
        self.seen: set[psutil.Process] = set()
        settings = {f"ALLOTD_{name.upper()}": value for name, value in QUICK.items()}
        self.environment = {
            **os.environ,
            **settings,
            "ALLOTD_FAKE_ENGINE": json.dumps(SLOW),
            "ALLOTD_IN_FLIGHT_MAX": "16",
            "ALLOTD_PROFILE": str(directory / "profile.json"),
            MARK: str(directory),  # whatever descends from us carries it
        }

    def start(self, *options: str) -> None:
        self.output.write_text("")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command("up", "--fake", "--port", "0", "--data-dir", str(self.data), *options),
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        assert wait_until(lambda: "Ctrl-C stops everything" in self.said or self.process.poll() is not None, WAIT_S)
        assert self.process.poll() is None, self.said
        self.processes()

    @property
    def said(self) -> str:
        return self.output.read_text()

    def allotd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )

    def json(self, *arguments: str) -> Any:
        done = self.allotd(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def profile(self) -> Profile:
        stored = json.loads((self.directory / "profile.json").read_text())
        return Profile(url=stored["url"], key=stored["key"])

    def states(self, batch_id: str) -> dict[str, int]:
        with connect(self.profile()) as api:
            found: dict[str, int] = api.get(f"/v1/batches/{batch_id}")["allotd"]["states"]
            return found

    def submit(self) -> str:
        file = self.directory / "questions.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in sums(QUERIES, samples_max=4)))
        self.json("tenant", "create", "acme")
        return str(self.json("batch", "submit", str(file), "--tenant", "acme")["id"])

    def wait_for_answers(self, batch_id: str, count: int) -> None:
        assert wait_until(lambda: self.states(batch_id).get("answered", 0) >= count, WAIT_S), self.states(batch_id)

    def left(self) -> list[str]:
        """The command lines of what still runs of it."""
        return [title(found) for found in self.processes()]

    def processes(self) -> list[psutil.Process]:
        """What runs of it: below it, marked by it, or seen below it before (some overwrite their environment)."""
        marked = [found for found in psutil.process_iter() if is_marked(found, str(self.directory))]
        with suppress(psutil.NoSuchProcess):
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))
        self.seen.update(marked)
        return [found for found in self.seen if is_alive(found)]

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_S)

    def kill_part(self, part: str) -> None:
        """Kill the one process whose command line matches."""
        (victim,) = (found for found in self.processes() if re.search(part, title(found)))
        victim.kill()

    def models(self) -> list[dict[str, Any]]:
        with connect(self.profile()) as api:
            return api.pages("/v1/models")

    def kill_everything(self) -> None:
        """As if the machine lost its power, but for the disk."""
        for found in self.processes():
            with suppress(psutil.Error):
                found.kill()
        self.process.wait(WAIT_S)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    made.kill_everything()


def test_a_batch_survives_ctrl_c_and_is_finished_by_the_next_start(up: Up) -> None:
    up.start()
    batch_id = up.submit()
    up.wait_for_answers(batch_id, QUERIES // 4)

    code = up.interrupt()

    assert code == 0, up.said
    assert up.left() == []
    before = answers(up)
    assert QUERIES // 4 <= len(before) < QUERIES
    up.start()
    waited = up.allotd("batch", "status", batch_id, "--wait")
    assert f"is completed: {QUERIES} answered" in waited.stdout, waited.stderr
    assert waited.returncode == 0
    assert_each_is_answered_once(up, batch_id, before)
    assert up.interrupt() == 0
    assert up.left() == []


def test_a_batch_survives_kill_9_of_every_process_at_once(up: Up) -> None:
    up.start()
    batch_id = up.submit()
    up.wait_for_answers(batch_id, QUERIES // 4)

    up.kill_everything()

    before = answers(up)
    up.start()
    waited = up.allotd("batch", "status", batch_id, "--wait")
    assert waited.returncode == 0, waited.stderr + up.said
    assert_each_is_answered_once(up, batch_id, before)
    assert up.interrupt() == 0
    assert up.left() == []


def test_a_batch_survives_kill_9_of_each_part_in_turn(up: Up) -> None:
    up.start()
    batch_id = up.submit()
    for answered, part in enumerate(PARTS, start=1):
        up.wait_for_answers(batch_id, answered)
        up.kill_part(part)
    assert wait_until(lambda: up.said.count("starting it again in 0.5 s") == len(PARTS), WAIT_S), up.said

    waited = up.allotd("batch", "status", batch_id, "--wait")

    assert waited.returncode == 0, waited.stderr + up.said
    assert_each_is_answered_once(up, batch_id, {})
    assert up.interrupt() == 0
    assert up.left() == []


@pytest.mark.vllm
def test_a_real_small_model_reads_every_prompt_before_it_is_planned(up: Up) -> None:
    up.environment["ALLOTD_PROBE_PATIENCE_S"] = str(WAIT_S)
    up.start("--probe", str(fetch_smollm()), "--eager")
    log = up.data / "logs" / "daemon.log"
    assert wait_until(lambda: "probe_answers" in log.read_text(), WAIT_S)

    batch_id = up.submit()

    waited = up.allotd("batch", "status", batch_id, "--wait")
    assert waited.returncode == 0, waited.stderr + up.said
    with Session(open_database(f"sqlite:///{up.data / 'allotd.db'}")) as session:
        found = session.execute(select(ProbeRow.view, ProbeRow.vector).join(QueryRow, QueryRow.id == ProbeRow.query_id))
        probes = [(row.view, len(row.vector or b"")) for row in found]
    view = probes[0][0]
    assert view.startswith("smollm2-layer20-")
    assert probes == [(view, HIDDEN_BYTES)] * QUERIES
    url = next(f"http://127.0.0.1:{found[1]}/v1" for found in map(PROBE_PORT.search, up.left()) if found)
    told = hidden_states_or_errors(view, ["\u2603" * 20_000 + "What is 12 + 9?", ""], url)
    assert [isinstance(each, list) for each in told] == [True, True], told  # of too long a prompt the end is read
    assert up.interrupt() == 0
    assert up.left() == []


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    made = Up(tmp_path_factory.mktemp("up"))
    made.start()
    yield made
    made.interrupt()
    assert made.left() == []


def test_the_admin_key_is_shown_and_kept_for_this_user_alone(running: Up) -> None:
    key = running.profile().key

    assert key is not None
    assert key in running.said
    for file in (running.data / "admin.key", running.directory / "profile.json", running.data / "valkey.conf"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(running.data.stat().st_mode) == 0o700


def test_a_second_up_on_the_same_directory_is_refused_and_the_first_goes_on(running: Up) -> None:
    second = running.allotd("up", "--fake", "--port", "0", "--data-dir", str(running.data))

    assert second.returncode == 1
    assert f"allotd is already running on {running.data}" in second.stderr
    assert [model["id"] for model in running.models()] == ["fake"]


def test_a_batch_out_of_money_ends_the_wait_with_the_command_that_lets_it_go_on(running: Up) -> None:
    file = running.directory / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in sums(QUERIES, samples_max=4)))
    running.json("tenant", "create", "poor")
    running.json("cap", "set", "poor", "0.001", "--per", "day")

    waited = running.allotd("batch", "submit", str(file), "--tenant", "poor", "--wait")

    assert waited.returncode == 3, waited.stdout + waited.stderr
    assert "are stopped by the day cap of poor" in waited.stdout
    assert "allotd cap set poor USD --per day" in waited.stdout
    (cap,) = running.json("cap", "list", "poor")
    assert cap["spent_nanousd"] <= cap["limit_nanousd"] == 1_000_000
    running.json("cap", "set", "poor", "1", "--per", "day")
    (batch,) = running.json("batch", "list", "--tenant", "poor")
    finished = running.allotd("batch", "status", batch["id"], "--wait")
    assert finished.returncode == 0, finished.stdout
    assert running.states(batch["id"])["answered"] == QUERIES


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scheduler.cli", *arguments]


def answers(up: Up) -> dict[Any, Any]:
    """Which sample answers each query that is answered, and since when."""
    with database(up) as session:
        rows = session.execute(
            select(QueryRow.custom_id, QueryRow.chosen_sample_id, QueryRow.finished_at).where(
                QueryRow.state == QueryState.ANSWERED
            )
        )
        return {row[0]: (row[1], row[2]) for row in rows}


def assert_each_is_answered_once(up: Up, batch_id: str, before: dict[Any, Any]) -> None:
    """None is lost, none stands twice in the output, what was answered `before` still is, and the books balance."""
    output = up.json("batch", "output", batch_id)
    assert sorted(line["custom_id"] for line in output) == sorted(f"sum-{i}" for i in range(QUERIES))
    after = answers(up)
    assert {custom_id: after[custom_id] for custom_id in before} == before
    with database(up) as session:
        assert [str(found) for found in discrepancies(session)] == []


@contextmanager
def database(up: Up) -> Iterator[Session]:
    engine = open_database(f"sqlite:///{up.data / 'allotd.db'}")
    with Session(engine) as session:
        yield session
    engine.dispose()


def is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == mark)
    except psutil.Error:
        return False


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
