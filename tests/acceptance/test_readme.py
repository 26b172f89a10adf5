"""README's first steps, run as they stand there against the fake model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from scheduler.cli.main import app
from tests.acceptance.conftest import Stack, running
from tests.deployment import ROOT
from tests.services import Valkey

README = (ROOT / "README.md").read_text()
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
WORKLOAD = ROOT / "ops" / "demo" / "workload.jsonl"
WAIT_S = 500
"""Seconds on an idle machine; minutes where every command starts slowly."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Stack]:
    """allotd with the fake model under the names that README and the demo use."""
    demo = json.loads(WORKLOAD.read_text().splitlines()[0])["body"]["model"]
    options = json.dumps({"models": [MODEL, demo]})
    with running(tmp_path_factory.mktemp("readme"), valkey.url, demo, engine="fake", fake_engine=options) as made:
        yield made


@pytest.fixture
def environment(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """What a shell has after `allotd up`: the command, and where the server is."""
    commands = tmp_path / "bin"
    commands.mkdir()
    command = commands / "allotd"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m scheduler.cli "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ALLOTD_PROFILE": str(tmp_path / "profile.json"),
        "ALLOTD_URL": stack.url,
        "ALLOTD_API_KEY": stack.admin_key,
    }


def blocks(language: str) -> list[str]:
    """README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_first_steps_lead_from_a_file_to_a_report_and_openais_client_does_the_same(
    environment: dict[str, str], tmp_path: Path
) -> None:
    [steps], [program] = blocks("sh"), blocks("python")

    shell = run(["bash", "-e", "-c", steps], environment, tmp_path)
    key = json.loads(run(["allotd", "key", "create", "research", "--json"], environment, tmp_path).stdout)["key"]
    python = run([sys.executable, "-c", program], {**environment, "ALLOTD_API_KEY": key}, tmp_path)

    assert "2 lines, 2 of them can run." in shell.stdout
    assert "is completed: 2 answered" in shell.stdout
    assert "best_of_n" in shell.stdout  # the report's lines
    answers = [json.loads(line) for line in python.stdout.splitlines() if line]
    assert {answer["custom_id"] for answer in answers} == {"q1", "q2"}
    assert all(answer["response"]["body"]["choices"] for answer in answers)


def test_every_command_that_readme_names_exists() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)

    named = set(re.findall(r"`allotd ([a-z]+)(?: ([a-z-]+))?", README)) | set(
        re.findall(r"^allotd ([a-z]+)(?: ([a-z-]+))?", README, re.MULTILINE)
    )

    for noun, verb in named:
        command = root.commands[noun]
        if isinstance(command, typer.core.TyperGroup):
            assert verb in command.commands, f"allotd {noun} {verb}"
    assert len(named) > 5


def test_a_dry_run_of_the_demo_holds_what_the_run_then_costs(environment: dict[str, str], tmp_path: Path) -> None:
    submit = ["allotd", "batch", "submit", str(WORKLOAD), "--tenant", "demo", "--json"]
    run(["allotd", "tenant", "create", "demo"], environment, tmp_path)

    dry = json.loads(run([*submit, "--dry-run"], environment, tmp_path).stdout)
    batch = json.loads(run([*submit, "--wait"], environment, tmp_path).stdout)

    assert dry["runnable"] == batch["request_counts"]["completed"] == len(WORKLOAD.read_text().splitlines())
    assert dry["low_nanousd"] <= batch["allotd"]["spent_nanousd"] <= dry["worst_nanousd"]
    assert dry["low_nanousd"] <= dry["expected_nanousd"] <= dry["worst_nanousd"]


def run(command: list[str], environment: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as README's reader would."""
    done = subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, check=False, timeout=WAIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
