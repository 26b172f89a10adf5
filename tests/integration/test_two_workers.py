"""Two worker processes on PostgreSQL and Valkey: everything is settled, and everything once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from models.tables import Attempt, Entry, QueryRow, Wave
from scheduler.audit import discrepancies
from scheduler.states import AttemptState, BatchState, QueryState
from tests.deployment import deployment, sums
from tests.services import Valkey

QUERIES = 2000


def test_two_workers_settle_two_thousand_queries_once(
    new_database: Callable[[], str], valkey: Valkey, tmp_path: Path
) -> None:
    options = json.dumps({"time_scale": 0.02, "seed": 7})
    with deployment(
        new_database(), valkey.url, tmp_path, fake_engine=options, in_flight_max="128", lease_s="30"
    ) as stack:
        tenant_id = stack.add_tenant()
        batch_id = stack.submit(tenant_id, sums(QUERIES, samples_max=4))
        for name in ("worker-1", "worker-2", "daemon"):
            stack.start(name)

        assert stack.wait_for_batch(batch_id) is BatchState.COMPLETED

        with stack.sessions() as session:
            assert [str(d) for d in discrepancies(session)] == []
            assert stack.states() == {QueryState.ANSWERED: QUERIES}
            finished = session.execute(
                select(Attempt.query_id, func.count())
                .where(Attempt.state == AttemptState.FINISHED)
                .group_by("query_id")
            ).all()
            assert {count for _, count in finished} == {1}
            assert len(finished) == QUERIES
            assert session.scalar(select(func.count(func.distinct(Attempt.worker_id)))) == 2
            assert session.scalar(select(func.count()).where(Wave.state == "held")) == 0
            drawn = session.scalar(select(func.sum(QueryRow.samples_drawn))) or 0
            assert QUERIES <= drawn < 4 * QUERIES
            settles = session.scalar(select(func.count()).where(Entry.kind == "settle"))
            assert settles == session.scalar(select(func.count()).select_from(Wave))
