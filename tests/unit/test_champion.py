"""Which predictor the daemon plans with, and what happens when its file is gone, changed or replaced."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from structlog.testing import capture_logs

from models.tables import Alert, PlanRow, PredictorRow, QueryRow, SampleRow, Tenant
from scheduler import ledger, predictor_files, predictors
from scheduler.champion import Champion
from scheduler.daemon import Daemon
from scheduler.dispatch import make_celery
from scheduler.errors import Conflict
from scheduler.learning import Drawn, Example, GroupLearner
from scheduler.ledger import Reservation, WaveRequest
from scheduler.metrics import DatabaseCollector
from scheduler.priors import PLAIN, PlainPriors, groups_of
from scheduler.settings import Settings
from scheduler.states import PredictorState
from scheduler.types import Arm, Prediction, Query
from scheduler.wiring import Services
from tests.factories import MODEL, NOW, WORKER, add_batch, add_query, add_tenant, add_worker, fund, new_sessions

ARM = Arm(model=MODEL, strategy="best_of_n")
BELIEVED = Prediction(alpha=1.0, beta=1.0, tokens_p50=16, tokens_p90=32, version="test")


def ask(task: str | None = None, tenant_id: str | None = None, number: int = 1) -> Query:
    return Query(
        id=number, model=MODEL, messages=(), prompt_tokens=8, prompt_tokens_max=9, task=task, tenant_id=tenant_id
    )


def examples(task: str, right: int, wrong: int, first: int = 0) -> list[Example]:
    """Queries of a task with one judged sample each."""
    return [
        Example(query=ask(task, number=first + i), drawn=(Drawn(tokens=20, right=i < right),), believed=BELIEVED)
        for i in range(right + wrong)
    ]


def promote(sessions: sessionmaker[Session], directory: Path, version: str, rows: Sequence[Example]) -> Path:
    """A fitted predictor in a file, as the champion."""
    path, sha256 = predictor_files.save(directory, version, GroupLearner().fit(rows, version).content())
    with sessions.begin() as session:
        for row in session.scalars(select(PredictorRow)):
            row.state = PredictorState.RETIRED
        session.add(
            PredictorRow(
                version=version,
                state=PredictorState.CHAMPION,
                path=str(path),
                sha256=sha256,
                card_json="{}",
                because="better",
                created_at=NOW,
            )
        )
    return path


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as factory:
        yield factory


@pytest.fixture
def daemon(sessions: sessionmaker[Session]) -> Daemon:
    services = Services(settings=Settings(explore_share=0.0), sessions=sessions, clock=lambda: NOW)
    return Daemon(services=services, celery=make_celery("memory://"))


def rate(champion: Champion | PlainPriors, task: str) -> float:
    return champion.predict([ask(task)], [ARM])[0].success_rate


def planned_by(daemon: Daemon, sessions: sessionmaker[Session]) -> str:
    """The predictor that a new query's plan names."""
    with sessions.begin() as session:
        tenant = session.get(Tenant, "tenant_acme") or add_tenant(session)
        query_id = add_query(session, add_batch(session, tenant)).id
    with capture_logs():
        daemon.follow_champion()
        daemon.plan()
    with sessions() as session:
        return session.scalars(select(PlanRow.predictor_version).where(PlanRow.query_id == query_id)).one()


def in_use(daemon: Daemon, sessions: sessionmaker[Session], directory: Path) -> Path:
    """The file of a predictor `v1` that the daemon plans with."""
    with sessions.begin() as session:
        add_worker(session, capacity=64)
    path = promote(sessions, directory, "v1", examples("sums", 90, 10))
    assert planned_by(daemon, sessions) == "v1"
    return path


def test_a_corrupted_file_leaves_a_running_daemon_on_plain_priors_with_an_alert(
    daemon: Daemon, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    path = in_use(daemon, sessions, tmp_path)
    assert rate(daemon.predictor, "sums") > 0.8
    sound = path.read_bytes()

    path.write_bytes(sound[:100] + b"?" + sound[101:])

    assert planned_by(daemon, sessions) == PLAIN
    with sessions() as session:
        [alert] = session.scalars(select(Alert))
        assert (alert.kind, alert.subject) == ("predictor_unusable", "v1")
        assert "plain priors" in alert.message
        assert "has changed" in alert.message
    assert usable(daemon.services) == {"v1": 0.0}

    path.write_bytes(sound)

    assert planned_by(daemon, sessions) == "v1"
    assert usable(daemon.services) == {"v1": 1.0}


def test_each_new_trouble_with_the_file_is_told_even_on_one_day(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    moments = (NOW + timedelta(milliseconds=number) for number in itertools.count())
    services = Services(settings=Settings(explore_share=0.0), sessions=sessions, clock=lambda: next(moments))
    daemon = Daemon(services=services, celery=make_celery("memory://"))
    path = in_use(daemon, sessions, tmp_path)
    sound = path.read_bytes()

    path.unlink()
    assert [planned_by(daemon, sessions) for _ in range(2)] == [PLAIN, PLAIN]
    path.write_bytes(sound)
    assert planned_by(daemon, sessions) == "v1"
    path.write_bytes(b"?" + sound[1:])
    assert [planned_by(daemon, sessions) for _ in range(2)] == [PLAIN, PLAIN]

    with sessions() as session:
        gone, changed = session.scalars(select(Alert.message).order_by(Alert.created_at))
    assert "has changed" not in gone
    assert "has changed" in changed


def test_a_change_that_keeps_size_and_time_is_noticed(
    daemon: Daemon, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    path = in_use(daemon, sessions, tmp_path)
    stat, sound = path.stat(), path.read_bytes()

    path.write_bytes(b"?" + sound[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert planned_by(daemon, sessions) == PLAIN


def test_a_missing_file_is_told_once_and_a_new_champion_is_taken_up_without_a_restart(
    daemon: Daemon, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    with sessions.begin() as session:
        add_worker(session, capacity=64)
    promote(sessions, tmp_path, "v1", examples("sums", 90, 10)).unlink()

    assert [planned_by(daemon, sessions) for _ in range(2)] == [PLAIN, PLAIN]
    promote(sessions, tmp_path, "v2", examples("sums", 10, 90))

    assert planned_by(daemon, sessions) == "v2"
    assert rate(daemon.predictor, "sums") < 0.2
    with sessions() as session:
        assert len(session.scalars(select(Alert)).all()) == 1


def test_a_predictor_whose_file_is_gone_is_not_called_usable_after_another_was_in_use_for_a_moment(
    daemon: Daemon, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    with sessions.begin() as session:
        add_worker(session, capacity=64)
    promote(sessions, tmp_path, "v1", examples("sums", 90, 10))
    promote(sessions, tmp_path, "v2", examples("sums", 10, 90)).unlink()
    assert planned_by(daemon, sessions) == PLAIN

    for version in ("v1", "v2"):
        with sessions.begin() as session:
            predictors.promote(session, version, NOW)

    assert planned_by(daemon, sessions) == PLAIN
    assert usable(daemon.services) == {"v2": 0.0}


@pytest.mark.parametrize("is_gone", [True, False])
def test_what_cannot_be_used_is_not_promoted_and_passed_over_by_a_rollback(
    sessions: sessionmaker[Session], tmp_path: Path, is_gone: bool
) -> None:
    versions = ("v1", "v2", "v3")
    paths = {version: promote(sessions, tmp_path, version, examples("sums", 90, 10)) for version in versions}
    with sessions.begin() as session:
        for hours, version in enumerate(versions):
            session.get_one(PredictorRow, version).promoted_at = NOW + timedelta(hours=hours)
    if is_gone:
        paths["v2"].unlink()
    else:
        paths["v2"].write_bytes(b"?")

    with sessions.begin() as session:
        with pytest.raises(Conflict, match=r"'v2' cannot be used.* Put its file back"):
            predictors.check(predictors.find_predictor(session, "v2"))
        past = predictors.unusable_before(predictors.list_predictors(session))
        row = predictors.roll_back(session, NOW, past)

    assert past == ["v2"]
    assert row is not None
    assert row.version == "v1"


def test_who_does_not_see_the_folder_leaves_the_file_to_the_daemon(tmp_path: Path) -> None:
    predictor_files.check(tmp_path / "elsewhere" / "v1.skops", "0" * 64)

    with pytest.raises(predictor_files.PredictorUnusable, match="No such file"):
        predictor_files.check(tmp_path / "v1.skops", "0" * 64)


def test_a_file_with_a_matching_digest_but_strange_contents_is_refused(tmp_path: Path) -> None:
    path, sha256 = predictor_files.save(tmp_path, "v1", {"kind": "oracle", "version": "v1"})

    with pytest.raises(predictor_files.PredictorUnusable, match="oracle"):
        predictor_files.load(path, sha256)


def test_a_champion_that_fails_at_predicting_is_replaced_by_plain_priors_and_reported(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    class Broken:
        version = "v1"

        def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
            raise ValueError("other features")

    promote(sessions, tmp_path, "v1", examples("sums", 9, 1))
    champion = Champion(load=lambda _path, _sha256: Broken())
    with sessions() as session, capture_logs():
        champion.look(session)
        [prediction] = champion.predict([ask()], [ARM])
        finding = champion.look(session)

    assert prediction.version == PLAIN
    assert finding is not None
    assert "other features" in (finding.problem or "")


def test_plain_priors_know_nothing_at_first_and_the_rate_within_a_hundred_queries() -> None:
    lot = random.Random(1)
    plain = PlainPriors()
    assert (plain.predict([ask()], [ARM])[0].alpha, plain.predict([ask()], [ARM])[0].beta) == (1.0, 1.0)
    for number in range(100):
        task = "easy" if number % 2 else "hard"
        draws = [lot.random() < (0.9 if task == "easy" else 0.1) for _ in range(4)]
        drawn = draws.index(True) + 1 if True in draws else len(draws)
        groups = groups_of(MODEL, task, None)
        plain.add(number, groups, tokens=[20] * drawn, right=int(True in draws), judged=drawn)

    assert rate(plain, "easy") == pytest.approx(0.9, abs=0.1)
    assert rate(plain, "hard") == pytest.approx(0.1, abs=0.1)
    assert 0.3 < rate(plain, "never seen") < 0.7
    assert plain.predict([ask("easy")], [ARM])[0].tokens_p90 == 20


def test_plain_priors_read_each_sample_of_the_ledger_once(sessions: sessionmaker[Session]) -> None:
    plain = PlainPriors()
    with sessions.begin() as session:
        add_worker(session)
        query = add_query(session, add_batch(session, add_tenant(session)), task="sums")
        wave_id = held_wave(session, query.id)
        for position, correct in enumerate((False, True)):
            session.add(
                SampleRow(
                    query_id=query.id, wave_id=wave_id, position=position, text="", tokens=20,
                    finish_reason="stop", correct=correct, created_at=NOW,
                )
            )  # fmt: skip
        session.flush()

        assert plain.read_on(session) == 2
        assert plain.read_on(session) == 0

    assert rate(plain, "sums") == pytest.approx(0.5, abs=0.1)


def held_wave(session: Session, query_id: int) -> int:
    funded = fund(session, session.get_one(QueryRow, query_id), worker_id=WORKER)
    wave = WaveRequest(funded=funded, samples=2, tokens_max=64, tokens_floor=64, prompt_tokens=9)
    [hold] = ledger.reserve_all(session, [wave], NOW)
    assert isinstance(hold, Reservation)
    return hold.wave_id


def usable(services: Services) -> dict[str, float]:
    families = {family.name: family for family in DatabaseCollector(services).collect()}
    return {sample.labels["version"]: sample.value for sample in families["allotd_predictor_usable"].samples}
