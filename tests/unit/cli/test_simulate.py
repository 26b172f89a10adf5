"""Replays from the command line."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Allotd
from tests.unit.simulation.pools import judged, pool_line, write_pool


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    lines = [pool_line(f"q{i}", judged(verdicts)) for i, verdicts in enumerate(["1111", "1010", "0001", "0000"] * 8)]
    return write_pool(tmp_path / "pool.jsonl.gz", lines)


def test_the_json_holds_frontiers_ratios_and_the_share_of_the_oracle(allotd: Allotd, pool: Path) -> None:
    names = ("--policies", "uniform,stop", "--policies", "allotd,oracle")
    asked = ("simulate", "--train", str(pool), "--test", str(pool), *names, "--json")

    found = allotd(*asked, "--budgets", "0.5,1,2,4", "--draws", "5").json
    again = allotd(*asked, "--budgets", "0.5,1,2,4", "--draws", "5").json

    assert found == again, "the same seed gives the same figures"
    assert found["mode"] == "verifier"
    assert 0 < found["queries"] < 32
    assert set(found["frontiers"]) == {"uniform", "stop", "allotd", "oracle"}
    point = found["frontiers"]["uniform"][0]
    assert set(point) == {"tokens_per_query", "usd_per_query", "accuracy", "ci95"}
    assert point["tokens_per_query"] == 100.0
    assert point["usd_per_query"] is None
    assert point["ci95"][0] <= point["accuracy"] <= point["ci95"][1]
    assert set(found["versus"]["allotd"]) == {"uniform", "stop"}
    assert found["versus"]["stop"]["uniform"]["4"] > 1
    assert set(found["oracle_share"]) == {"1", "2", "4"}


def test_votes_are_compared_with_adaptive_consistency(allotd: Allotd, pool: Path) -> None:
    found = allotd("simulate", "--test", str(pool), "--mode", "vote", "--draws", "3", "--json").json

    assert {"uniform", "asc", "esc", "its-hub", "self_consistency", "hindsight"} <= set(found["frontiers"])
    assert {"0.8", "0.9", "0.95", "0.99"} <= set(found["versus"]["uniform"]["asc"])


def test_frontiers_are_printed_and_drawn(allotd: Allotd, pool: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontiers.svg"

    told = allotd("simulate", "--test", str(pool), "--draws", "3", "--policies", "uniform,stop", "--plot", str(picture))

    assert "32 queries, verifier mode" in told.out
    assert "x less tokens than uniform" in told.out
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a", b"<?xml")])
def test_a_picture_is_of_the_kind_that_its_name_says(
    allotd: Allotd, pool: Path, tmp_path: Path, name: str, magic: bytes
) -> None:
    allotd("simulate", "--test", str(pool), "--draws", "1", "--policies", "uniform", "--plot", str(tmp_path / name))

    assert (tmp_path / name).read_bytes().startswith(magic)


def test_what_is_given_and_does_not_count_is_mentioned(allotd: Allotd, tmp_path: Path) -> None:
    probe = {"vector": [0.5], "logprob_mean": -1, "logprob_std": 1, "logprob_min": -2, "tokens": 3}
    lines = [pool_line("a", judged("10"), probe=probe), pool_line("b", judged("01"))]
    pool = write_pool(tmp_path / "pool.jsonl.gz", lines)
    arms = [pool_line("a", judged("1"), arm=arm) | {"id": f"q{i}"} for arm in ("x", "y") for i in range(4)]

    told = allotd("simulate", "--test", str(pool), "--policies", "uniform,damani", "--budgets", "0.1")
    more = allotd("simulate", "--test", str(write_pool(tmp_path / "arms.jsonl", arms)), "--budgets", "2")

    assert "1 of 2 lines have no probe, so none is read" in told.err
    assert "There is no setting of uniform at these budgets" in told.err
    assert "Without --train plain priors set the budgets of damani, and may miss them by far" in told.err
    assert "settings of their own" not in told.err
    assert "need training pools" in more.err


def test_policies_that_know_no_budgets_are_mentioned(allotd: Allotd, pool: Path) -> None:
    told = allotd(
        "simulate", "--test", str(pool), "--mode", "vote", "--budgets", "2", "--policies", "uniform,asc,oracle"
    )

    assert "These have settings of their own instead of budgets: asc." in told.err


def test_samples_of_no_tokens_are_replayed_without_a_warning(allotd: Allotd, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", [pool_line("a", judged("10", tokens=0))])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert allotd("simulate", "--test", str(pool), "--draws", "2").code == 0


def test_votes_on_queries_without_answers_are_mentioned(allotd: Allotd, tmp_path: Path) -> None:
    lines = [pool_line("a", judged("10")), pool_line("b", [{"correct": 1, "tokens": 100}])]
    pool = str(write_pool(tmp_path / "pool.jsonl", lines))

    told = allotd("simulate", "--test", pool, "--mode", "vote")

    assert told.code == 0
    assert "1 of 2 lines have no recorded answers, so no vote on them is right" in told.err
    assert "no vote" not in allotd("simulate", "--test", pool).err


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--budgets", "1,lots"), "are no numbers"),
        (("--budgets", "0"), "more than 0 samples"),
        (("--policies", "best"), "There is no policy 'best'"),
        (("--policies", ","), "No policy is named; there are uniform"),
        (("--policies", "snell,uniform,lagrangian"), "what budgets bring: lagrangian, snell. Name pools with --train"),
        (("--plot", "no/folder/x.svg"), "in a folder that is there"),
        (("--mode", "vote", "--policies", "stop"), "knows no vote mode"),
        (("--train", "missing.jsonl"), "There is no pool missing.jsonl"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    allotd: Allotd, pool: Path, option: tuple[str, ...], complaint: str
) -> None:
    refused = allotd("simulate", "--test", str(pool), *option)

    assert refused.code == 2
    assert complaint in refused.err
