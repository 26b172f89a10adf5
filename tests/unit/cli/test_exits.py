"""Whatever goes wrong is one clear line on stderr and an exit code; never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from scheduler.cli.exits import exit_code
from scheduler.errors import Conflict, InvalidRequest
from tests.services import free_port
from tests.unit.cli.conftest import Allotd, Server


def test_no_server_is_one_line_with_the_command_that_starts_one(
    allotd: Allotd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOTD_URL", f"http://127.0.0.1:{free_port()}")

    done = allotd("tenant", "list")

    assert done.code == 1
    assert done.err.startswith("allotd: No allotd answers at http://127.0.0.1:")
    assert "allotd up" in done.err
    assert done.err.count("\n") == 1


def test_no_profile_and_no_variables_say_how_to_begin(allotd: Allotd) -> None:
    done = allotd("tenant", "list")

    assert done.code == 2
    assert done.err == (
        "allotd: No server is known; start one with `allotd up`, or set ALLOTD_URL and ALLOTD_API_KEY.\n"
    )


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://"])
def test_an_address_that_is_no_web_address_is_named(allotd: Allotd, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ALLOTD_URL", url)

    done = allotd("tenant", "list")

    assert done.code == 2
    assert url in done.err


def test_a_wrong_key_is_refused_in_one_line(server: Server, allotd: Allotd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOTD_API_KEY", "sk-allotd-wrong")

    done = allotd("tenant", "list")

    assert done.code == 1
    assert "API key" in done.err
    assert done.err.count("\n") == 1


def test_a_spoilt_profile_is_named(allotd: Allotd, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{")

    done = allotd("tenant", "list")

    assert done.code == 2
    assert str(tmp_path / "profile.json") in done.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidRequest("Say which."), 2, "allotd: Say which.\n"),
        (Conflict("It is taken."), 1, "allotd: It is taken.\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "allotd: [Errno 13] Permission denied: '/x'\n"),
        (httpx.ReadError("lost"), 1, "allotd: lost\n"),
        (
            KeyError("x"),
            1,
            "allotd: Something unexpected went wrong (KeyError: 'x'). ALLOTD_TRACEBACK=1 shows where.\n",
        ),
    ],
)
def test_every_kind_of_error_is_one_line(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert exit_code(fail) == code
    assert capsys.readouterr().err == line


def test_ctrl_c_is_130() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_code(interrupted) == 130


def test_a_reader_that_leaves_early_is_no_complaint() -> None:
    script = f"{sys.executable} -m scheduler.cli --help | true; exit ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)

    assert done.stderr == ""


@pytest.mark.parametrize(
    "command", ["", "up", "api", "daemon", "worker", "tenant", "key", "cap", "price", "batch", "report", "record", "db"]
)
def test_help_needs_neither_server_nor_services(allotd: Allotd, command: str) -> None:
    done = allotd(*([command] if command else []), "--help")

    assert done.code == 0
    assert "Usage" in done.out


def test_commands_that_only_talk_to_the_api_import_no_database() -> None:
    code = "import sys, scheduler.cli.main; print([m for m in ('sqlalchemy', 'celery', 'numpy') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
