"""What `allotd up` refuses before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from scheduler.cli.client import Profile, store_profile
from scheduler.cli.parts import Address, Embedded
from scheduler.cli.up import default_data_dir
from scheduler.supervision import only_one
from tests.services import free_port
from tests.unit.cli.conftest import Allotd


@pytest.mark.parametrize("choice", [[], ["--fake", "--llm", "x"], ["--llm-url", "http://x", "--fake"]])
def test_there_must_be_exactly_one_model(allotd: Allotd, choice: list[str]) -> None:
    done = allotd("up", *choice)

    assert done.code == 2
    assert done.err == "allotd: Say which model to use, by one of --llm NAME_OR_PATH, --llm-url URL and --fake.\n"


def test_a_model_directory_must_exist(allotd: Allotd) -> None:
    done = allotd("up", "--llm", "./no-such-model")

    assert (done.code, done.err) == (2, "allotd: There is no model directory ./no-such-model.\n")


def test_a_port_that_is_taken_is_named(allotd: Allotd, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = allotd("up", "--fake", "--port", str(port), "--data-dir", str(tmp_path))

    assert done.code == 2
    assert f"127.0.0.1:{port} cannot be listened on (Address already in use)" in done.err


def test_an_address_of_another_machine_is_named(allotd: Allotd, tmp_path: Path) -> None:
    done = allotd("up", "--fake", "--host", "192.0.2.1", "--data-dir", str(tmp_path))

    assert done.code == 2
    assert "192.0.2.1" in done.err


def test_the_data_directory_follows_the_desktops_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_dir() == Path("/data/allotd")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_data_dir() == Path("/home/me/.local/share/allotd")


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")]
)
def test_an_api_that_listens_everywhere_is_asked_on_loopback(host: str, url: str) -> None:
    assert Address(host=host, port=1).url == url


def test_a_model_server_that_is_not_there_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    import subprocess
    import sys

    url = f"http://127.0.0.1:{free_port()}/v1"
    command = [
        sys.executable,
        "-m",
        "scheduler.cli",
        "up",
        "--llm-url",
        url,
        "--port",
        "0",
        "--data-dir",
        str(tmp_path),
    ]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert done.stderr.startswith(f"allotd: The model server at {url} does not list its models")
    assert done.stderr.count("\n") == 1


def test_arguments_after_two_dashes_go_to_vllm(tmp_path: Path) -> None:
    embedded = Embedded(
        directory=tmp_path, address=Address(host="127.0.0.1", port=1), admin_key="k", llm_url="http://127.0.0.1:2/v1"
    )

    command = embedded.vllm("m", served_name=None, is_eager=False, extra=("--max-model-len", "2048")).command

    assert command[-3:] == ("--", "--max-model-len", "2048")


def test_a_model_with_a_probe_beside_it_leaves_it_room(tmp_path: Path) -> None:
    embedded = Embedded(
        directory=tmp_path,
        address=Address(host="127.0.0.1", port=1),
        admin_key="k",
        llm_url="http://127.0.0.1:2/v1",
        probe_url="http://127.0.0.1:3/v1",
    )

    command = embedded.vllm("m", served_name=None, is_eager=False, extra=("--max-model-len", "2048")).command

    assert command[-4:] == ("--beside-probe", "--", "--max-model-len", "2048")


def test_a_probe_that_is_no_model_is_refused_before_anything_starts(allotd: Allotd, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 30}')

    none, no_weights = (allotd("up", "--fake", "--probe", str(path)) for path in (tmp_path / "no", tmp_path))

    assert (none.code, no_weights.code) == (2, 2)
    assert "give a directory with a model's config.json and safetensors. `hf download" in none.err
    assert "holds a config.json, but no safetensors beside it" in no_weights.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Qwen/Qwen2.5-0.5B-Instruct"], "a model is named by --llm"),
        (["--fake", "--", "--max-model-len", "9"], "Arguments after -- are for the vLLM that --llm starts"),
        (["--llm", "x", "--", "--port=9"], "--port is set by allotd"),
        (["--llm", "x", "--", "--served_model_name", "y"], "Use --served-name."),
    ],
)
def test_arguments_that_cannot_go_to_vllm_are_refused(allotd: Allotd, arguments: list[str], words: str) -> None:
    done = allotd("up", *arguments)

    assert done.code == 2
    assert words in done.err


def test_a_second_up_on_the_same_data_is_refused_in_one_line(allotd: Allotd, tmp_path: Path) -> None:
    with only_one(tmp_path, lambda _: None):
        done = allotd("up", "--fake", "--port", "0", "--data-dir", str(tmp_path))

    assert done.code == 1
    assert done.err.startswith(f"allotd: allotd is already running on {tmp_path} (process ")
    assert done.err.count("\n") == 1


def test_the_profile_is_for_its_owners_eyes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "profile.json"
    monkeypatch.setenv("ALLOTD_PROFILE", str(path))
    path.parent.mkdir()
    path.touch(mode=0o644)

    store_profile(Profile(url="http://127.0.0.1:1", key="k"))

    assert path.stat().st_mode & 0o777 == 0o600
