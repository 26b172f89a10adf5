"""For any number of workers, daemons and tenants, and a kill -9 of anything at any time, the invariant holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import draw_faults, storm


@pytest.mark.timeout(600)
def test_no_money_line_or_sample_is_lost_in_a_storm(tmp_path: Path) -> None:
    damage = storm(seed=7, faults=24, logs=tmp_path)

    assert damage.is_none, "\n".join(damage.lines_of_report())
    assert damage.faults.total() == 24
    assert damage.attempts_lost > 0


def test_a_seed_gives_the_same_faults_each_time() -> None:
    assert draw_faults(seed=3, count=50) == draw_faults(seed=3, count=50)
    assert draw_faults(seed=3, count=50) != draw_faults(seed=4, count=50)
