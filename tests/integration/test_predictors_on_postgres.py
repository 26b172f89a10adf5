"""Budgets, prices and predictors on PostgreSQL: what is asked of it there is what SQLite answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Pace, PredictorRow, QueryRow
from scheduler import predictors, probes
from scheduler.errors import Conflict
from scheduler.examples import read_examples
from scheduler.insight import insight
from scheduler.priors import PlainPriors
from scheduler.reports import Scope
from scheduler.settings import Settings
from scheduler.states import QueryState
from scheduler.tuning import ask_if_due
from scheduler.wiring import Services
from tests.factories import NOW, add_batch, add_cap, add_query, add_tenant, add_worker, new_sessions
from tests.unit.answering import answer
from tests.unit.test_budgets import JUDGED, Believes, allotted


@pytest.fixture
def sessions(new_database: Callable[[], str]) -> Iterator[sessionmaker[Session]]:
    with new_sessions(new_database()) as made:
        yield made


def test_a_priced_window_its_report_and_what_is_learned_from_it(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        add_worker(session)
        tenant = add_tenant(session)
        add_cap(session, tenant, 900, period="day")
        batch = add_batch(session, tenant, limit_nanousd=10**6)
        batch.lines_read = 40
        answer(session, batch, "21", "21", correct=True, task="sums")
        rows = [add_query(session, batch, **JUDGED) for _ in range(3)]

        for _ in range(2):
            window = allotted(session, rows, Believes([0.2, 0.5, 0.8]))

        assert {draft.plan.price > 0 for draft in window.drafts} == {True}
        assert [(pace.windows, pace.price > 0) for pace in session.scalars(select(Pace))] == [(2, True)]
        [price] = insight(session, Scope(tenant_id=tenant.id), NOW).prices
        assert price.sentence.startswith("One more dollar buys about ")
        assert [(one.right > 0, one.judged > 0) for one in read_examples(session)] == [(True, True)]
        assert PlainPriors().read_on(session) == 2
    services = Services(settings=Settings(), sessions=sessions, clock=lambda: NOW)
    assert ask_if_due(services) is None


def test_of_many_promotions_at_once_one_predictor_is_left_in_use(sessions: sessionmaker[Session]) -> None:
    versions = [f"p{number}" for number in range(6)]
    with sessions.begin() as session:
        for version in versions:
            path = str(Path(f"{version}.skops"))
            row = PredictorRow(
                version=version, state="kept_out", path=path, card_json="{}", because="so", created_at=NOW
            )
            session.add(row)

    def promote(version: str) -> None:
        with sessions.begin() as session:
            predictors.promote(session, version, NOW)

    with ThreadPoolExecutor(len(versions)) as pool:
        list(pool.map(promote, versions))

    with sessions() as session:
        states = [row.state for row in session.scalars(select(PredictorRow))]
        assert sorted(states) == ["champion", *["retired"] * 5]
        with pytest.raises(Conflict):
            predictors.promote(session, predictors.champion(session).version, NOW)  # type: ignore[union-attr]


def test_probes_of_two_daemons_at_once_are_kept_once_and_forgotten_when_they_are_old(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "KEPT", 2)
    with sessions.begin() as session:
        batch = add_batch(session, add_tenant(session))
        ids = [add_query(session, batch, f"{i}").id for i in range(4)]
        assert list(probes.wanted(session, 10)) == ids

    def keep(view: str) -> None:
        with sessions.begin() as session:
            probes.keep(session, view, dict.fromkeys(ids, (0.5, -2.0)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep, "abcd"))

    with sessions.begin() as session:
        found = probes.probes_of(session, ids)
        assert [found[query_id].vector for query_id in ids] == [probes.packed([0.5, -2.0])] * 4
        assert len({found[query_id].view for query_id in ids}) == 1
        assert not probes.wanted(session, 10)
        session.execute(update(QueryRow).values(state=QueryState.ANSWERED))
        assert probes.forget(session) == 2
        assert set(probes.probes_of(session, ids)) == set(ids[2:])
