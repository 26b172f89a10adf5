"""Workers and daemons that die, hang and come back: what they ran goes on elsewhere, and they can harm nothing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import Attempt, Entry, QueryRow, SampleRow, Wave
from scheduler.audit import discrepancies
from scheduler.database import reading
from scheduler.states import AttemptState, BatchState, QueryState, WaveState
from tests.deployment import Deployment, deployment, sums
from tests.services import Valkey

QUERIES = 12
SLOW = json.dumps({"time_scale": 1.0, "tokens_per_s": 16.0, "tokens_median": 16.0, "first_token_s": 0.1, "seed": 3})
"""A sample takes about a second; enough for a heartbeat to report half of it."""
FOR_EVER = "600"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'allotd.db'}"
    new_database: Callable[[], str] = request.getfixturevalue("new_database")
    return new_database()


def test_a_query_whose_worker_is_killed_in_mid_wave_ends_elsewhere_with_its_samples(
    url: str, valkey: Valkey, tmp_path: Path
) -> None:
    """Show 2 of the issue. The lease never runs out here: the dead worker's lock tells."""
    with deployment(url, valkey.url, tmp_path, fake_engine=SLOW, lease_s=FOR_EVER, redispatch_s=FOR_EVER) as stack:
        batch_id = stack.submit(stack.add_tenant(), sums(QUERIES, samples_max=6, strategy="self_consistency"))
        stack.start("worker-1")
        stack.start("daemon")
        stack.wait_for(is_in_second_wave)
        before = settled_samples(stack)

        stack.kill("worker-1")
        stack.start("worker-2")

        assert stack.wait_for_batch(batch_id) is BatchState.COMPLETED
        with reading(stack.sessions) as session:
            assert stack.states() == {QueryState.ANSWERED: QUERIES}
            assert before
            assert before <= set(session.scalars(select(SampleRow.id)))
            assert never_more_than(session, 6)
            lost = session.scalars(select(Attempt).where(Attempt.state == AttemptState.LOST)).all()
            expired = session.scalars(select(Wave).where(Wave.state == WaveState.EXPIRED)).all()
            assert {wave.attempt_id for wave in expired} <= {attempt.id for attempt in lost}
            assert any(wave.cost_nanousd for wave in expired), "no heartbeat reported what was used"
            assert entries_of(session, expired) <= {("reserve", "settle", "expire"), ("reserve", "expire")}
            assert [str(found) for found in discrepancies(session)] == []


def test_a_zombie_that_wakes_after_its_lease_is_gone_changes_nothing(
    new_database: Callable[[], str], valkey: Valkey, tmp_path: Path
) -> None:
    with deployment(new_database(), valkey.url, tmp_path, fake_engine=SLOW) as stack:
        batch_id = stack.submit(stack.add_tenant(), sums(QUERIES, samples_max=2, strategy="self_consistency"))
        stack.start("worker-1")
        stack.start("daemon")
        stack.wait_for(lambda session: count_waves(session, WaveState.HELD) > 0)
        stack.kill("worker-1", signal.SIGSTOP)
        stack.start("worker-2")
        stack.wait_for(lambda session: count_attempts(session, AttemptState.LOST) > 0)

        stack.kill("worker-1", signal.SIGCONT)

        assert stack.wait_for_batch(batch_id) is BatchState.COMPLETED
        with reading(stack.sessions) as session:
            assert stack.states() == {QueryState.ANSWERED: QUERIES}
            assert never_more_than(session, 2)
            finished = select(Attempt.query_id).where(Attempt.state == AttemptState.FINISHED)
            assert sorted(session.scalars(finished)) == sorted(session.scalars(select(QueryRow.id)))
            assert [str(found) for found in discrepancies(session)] == []
        stack.wait_for(lambda _: "lease_lost" in (tmp_path / "worker-1.log").read_text())


def test_a_second_daemon_takes_over_when_the_first_is_killed(
    new_database: Callable[[], str], valkey: Valkey, tmp_path: Path
) -> None:
    with deployment(new_database(), valkey.url, tmp_path, fake_engine=json.dumps({"time_scale": 0.1})) as stack:
        tenant_id = stack.add_tenant()
        stack.start("worker")
        stack.start("daemon-1")
        first = stack.submit(tenant_id, sums(QUERIES))
        assert stack.wait_for_batch(first) is BatchState.COMPLETED
        stack.start("daemon-2")
        time.sleep(0.5)
        assert "daemon_leads" not in (tmp_path / "daemon-2.log").read_text()

        stack.kill("daemon-1")
        second = stack.submit(tenant_id, sums(QUERIES))

        assert stack.wait_for_batch(second) is BatchState.COMPLETED
        assert "daemon_leads" in (tmp_path / "daemon-2.log").read_text()


def is_in_second_wave(session: Session) -> bool:
    """Whether some samples are paid for while others are on their way and have been reported."""
    reported = select(func.count()).where(Wave.state == WaveState.HELD, Wave.completion_tokens > 0)
    return count_waves(session, WaveState.SETTLED) > 0 and (session.scalar(reported) or 0) > 0


def settled_samples(stack: Deployment) -> set[int]:
    with reading(stack.sessions) as session:
        return set(session.scalars(select(SampleRow.id)))


def count_waves(session: Session, state: WaveState) -> int:
    return session.scalar(select(func.count()).where(Wave.state == state)) or 0


def count_attempts(session: Session, state: AttemptState) -> int:
    return session.scalar(select(func.count()).where(Attempt.state == state)) or 0


def never_more_than(session: Session, samples: int) -> bool:
    """Whether no query was sold more whole samples than its budget."""
    drawn = select(func.count()).where(SampleRow.finish_reason == "stop").group_by(SampleRow.query_id)
    return max(session.scalars(drawn)) <= samples


def entries_of(session: Session, waves: Sequence[Wave]) -> set[tuple[str, ...]]:
    """The kinds of entries that each wave has, in the order in which they were written."""
    found: dict[int | None, tuple[str, ...]] = {}
    chosen = select(Entry).where(Entry.wave_id.in_([wave.id for wave in waves])).order_by(Entry.id)
    for entry in session.scalars(chosen):
        found[entry.wave_id] = (*found.get(entry.wave_id, ()), entry.kind)
    return set(found.values())
