"""Pools are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.errors import InvalidRequest
from scheduler.simulation.pools import read_pools
from tests.unit.simulation.pools import judged, pool_line, write_pool


def test_bad_lines_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "bad.jsonl.gz",
        [
            pool_line("a", judged("10")),
            "{oops",
            pool_line("b", [{"correct": 2, "tokens": 5}]),
            pool_line("a", judged("1")),
            pool_line("c", []),
            pool_line("d", [{"correct": 1, "tokens": -5}]),
        ],
    )

    with pytest.raises(InvalidRequest) as refused:
        read_pools([pool])

    for said in ("line 2 is not JSON", "line 3", "samples[0].correct", "line 4 repeats id 'a'", "line 5", "line 6"):
        assert said in refused.value.message


def test_a_pool_cut_off_in_the_middle_is_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "cut.jsonl.gz", [pool_line(f"q{i}", judged("0101")) for i in range(50)])
    pool.write_bytes(pool.read_bytes()[:-20])

    with pytest.raises(InvalidRequest, match="is damaged"):
        read_pools([pool])


def test_an_empty_or_missing_pool_is_refused(tmp_path: Path) -> None:
    empty = write_pool(tmp_path / "empty.jsonl", [])

    with pytest.raises(InvalidRequest, match="no line"):
        read_pools([empty])
    with pytest.raises(InvalidRequest, match="There is no pool"):
        read_pools([tmp_path / "missing.jsonl"])


def test_one_query_may_stand_under_several_arms(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "p.jsonl", [pool_line("a", judged("1"), arm=arm) for arm in ("small", "large")])

    assert [line.arm for line in read_pools([pool])] == ["small", "large"]
