"""Pools are recorded on a real server of the fake model: whole, judged, resumed, and never by two at once."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.cli.parts import served_models
from scheduler.errors import InvalidRequest
from scheduler.processes import wait_until
from tests.deployment import sums
from tests.services import free_port
from tests.unit.cli.conftest import Allotd


@pytest.fixture(scope="module")
def llm_url() -> Iterator[str]:
    """A server of two fake models."""
    port = free_port()
    options = json.dumps({"models": ["fake", "other"]})
    command = [sys.executable, "-m", "workers.engines.fake_server", "--port", str(port), "--options", options]
    url = f"http://127.0.0.1:{port}/v1"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        assert wait_until(lambda: is_up(url), 60)
        yield url
        process.terminate()


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "work.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in sums(6, task="sums")))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pool.jsonl.gz"


def test_a_pool_holds_every_query_with_its_judged_samples(
    allotd: Allotd, llm_url: str, workload: Path, out: Path
) -> None:
    done = allotd("record", workload, "--samples", "40", "--out", out, "--llm-url", llm_url, "--seed", "1")

    assert done.out == f"6 of 6 queries with 40 samples each are in {out}.\n"
    lines = pool(out)
    assert sorted(line["id"] for line in lines) == [f"sum-{i}" for i in range(6)]
    for line in lines:
        assert {name: line[name] for name in ("pool", "arm", "task")} == {"pool": "pool", "arm": "fake", "task": "sums"}
        assert line["question"].startswith("What is ")
        assert len(line["samples"]) == 40
        for sample in line["samples"]:
            assert sample["correct"] == int(sample["answer"] == line["reference"])
            assert sample["tokens"] == len(sample["text"].split())
            assert sample["logprob"] < 0
    assert {sample["correct"] for line in lines for sample in line["samples"]} == {0, 1}
    assert list(out.parent.glob("*.partial")) == []


def test_the_same_command_again_asks_nothing_and_changes_nothing(
    allotd: Allotd, llm_url: str, workload: Path, out: Path
) -> None:
    allotd("record", workload, "--samples", "3", "--out", out, "--llm-url", llm_url)
    before = pool(out)

    allotd("record", workload, "--samples", "3", "--out", out, "--llm-url", llm_url)

    assert pool(out) == before


def test_a_crashed_recording_goes_on_after_its_last_whole_line(
    allotd: Allotd, llm_url: str, workload: Path, out: Path
) -> None:
    kept = {
        "pool": "pool",
        "id": "sum-0",
        "arm": "fake",
        "samples": [{"answer": "kept", "correct": 0, "tokens": 1}] * 3,
    }
    partial = out.with_name(f"{out.name}.partial")
    partial.write_text(json.dumps(kept) + "\n" + '{"id": "sum-1", "arm": "fa')

    allotd("record", workload, "--samples", "3", "--out", out, "--llm-url", llm_url)

    lines = pool(out)
    assert kept in lines
    assert len(lines) == 6
    assert not partial.exists()


def test_more_samples_replace_fewer_and_other_arms_stay(
    allotd: Allotd, llm_url: str, workload: Path, out: Path
) -> None:
    for model, samples in (("fake", "2"), ("other", "2"), ("fake", "4")):
        done = allotd("record", workload, "--samples", samples, "--out", out, "--llm-url", llm_url, "--model", model)
        assert done.code == 0, done.err

    sizes = {(line["id"], line["arm"]): len(line["samples"]) for line in pool(out)}
    assert len(sizes) == len(pool(out)) == 12
    assert {arm: {size for (_, a), size in sizes.items() if a == arm} for arm in ("fake", "other")} == {
        "fake": {4},
        "other": {2},
    }


def test_a_query_the_server_refuses_is_named_and_the_rest_recorded(
    allotd: Allotd, llm_url: str, workload: Path, out: Path
) -> None:
    lines = sums(2)
    lines[0]["body"]["messages"][0]["content"] = "word " * 9000
    lines[0]["body"]["max_tokens"] = 8000
    workload.write_text("".join(json.dumps(line) + "\n" for line in lines))

    done = allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", llm_url)

    assert done.code in {1, 2}
    assert "sum-0" in done.err or "Line 1" in done.err or "context" in done.err


def test_lines_that_cannot_be_judged_or_recorded_are_named_before_anything_is_asked(
    allotd: Allotd, llm_url: str, workload: Path, out: Path
) -> None:
    lines = sums(3)
    del lines[1]["body"]["allotd"]
    lines[2]["custom_id"] = "sum-0"
    workload.write_text("".join(json.dumps(line) + "\n" for line in lines) + "nonsense\n")

    done = allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", llm_url)

    assert done.code == 2
    assert "Line 2 has no allotd.verifier with a reference" in done.err
    assert "Line 4" in done.err
    assert "Lines 1 and 3 have the same custom_id 'sum-0'" in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--temperature", "0.9"], "with the temperature 0.7, and 0.9 is asked for now"),
        (["--tokens-max", "100"], "with the max_tokens"),
        (["--model", "other", "--arm", "fake"], "with the model 'fake', and 'other' is asked for now"),
    ],
)
def test_a_pool_is_not_resumed_with_other_settings(
    allotd: Allotd, llm_url: str, workload: Path, out: Path, change: list[str], words: str
) -> None:
    lines = sums(2)
    for line in lines:
        line["body"].pop("temperature", None)
        line["body"].pop("max_tokens", None)
    workload.write_text("".join(json.dumps(line) + "\n" for line in lines))
    allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", llm_url)
    before = pool(out)

    done = allotd("record", workload, "--samples", "3", "--out", out, "--llm-url", llm_url, *change)

    assert done.code == 1
    assert words in done.err
    assert pool(out) == before


def test_a_pool_is_not_resumed_with_another_workload_of_the_same_ids(
    allotd: Allotd, llm_url: str, workload: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = sums(2)
    allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", llm_url)
    lines[1]["body"]["messages"][-1]["content"] = "What is 1 + 1?"
    other = "".join(json.dumps(line) + "\n" for line in lines).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(other)))

    done = allotd("record", "-", "--samples", "2", "--out", out, "--llm-url", llm_url)

    assert done.code == 1
    assert "'sum-1' under the arm 'fake' with the question " in done.err
    assert "'What is 1 + 1?' is asked for now" in done.err


def test_two_recorders_of_one_pool_are_one_too_many(allotd: Allotd, llm_url: str, workload: Path, out: Path) -> None:
    with out.with_name(f"{out.name}.partial").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        done = allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", llm_url)

    assert done.code == 1
    assert "Another process records into" in done.err


def test_a_file_that_is_no_pool_is_left_alone(allotd: Allotd, llm_url: str, workload: Path, out: Path) -> None:
    out.write_text("my thesis")

    done = allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", llm_url)

    assert done.code == 2
    assert "is no pool" in done.err
    assert out.read_text() == "my thesis"


@pytest.mark.parametrize("content", ["my thesis\n", "[]\n", '{"id": "a"}\n'])
def test_plain_lines_that_are_no_pool_are_left_alone(
    allotd: Allotd, llm_url: str, workload: Path, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "pool.jsonl"
    out.write_text(content)

    done = allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", llm_url)

    assert done.code == 2
    assert "is no pool (line 1" in done.err
    assert out.read_text() == content


def test_no_model_server_is_one_line(allotd: Allotd, workload: Path, out: Path) -> None:
    done = allotd("record", workload, "--samples", "2", "--out", out, "--llm-url", f"http://127.0.0.1:{free_port()}/v1")

    assert done.code == 2
    assert "--llm-url" in done.err
    assert done.err.count("\n") == 1


def pool(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def is_up(url: str) -> bool:
    try:
        return bool(served_models(url))
    except InvalidRequest:
        return False
