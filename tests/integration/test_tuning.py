"""Training in a process of its own, as the daemon starts it: what it finds is written down, and so is its death."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from scheduler import predictors, tuning
from scheduler.settings import Settings
from scheduler.wiring import Services, utc_now
from tests.factories import new_sessions


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'allotd.db'}"
    monkeypatch.setenv("ALLOTD_DATABASE_URL", url)
    monkeypatch.setenv("ALLOTD_PREDICTORS_DIR", str(tmp_path / "predictors"))
    return url


@pytest.fixture
def services(url: str) -> Iterator[Services]:
    with new_sessions(url) as sessions:
        yield Services(settings=Settings(database_url=url), sessions=sessions, clock=utc_now)


def because(sessions: sessionmaker[Session], version: str) -> tuple[str, str]:
    with sessions() as session:
        row = predictors.find_predictor(session, version)
        return row.state, row.because


def test_a_training_process_keeps_its_challenger_out_with_the_reason_or_is_told_how_it_died(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with services.sessions.begin() as session:
        version = predictors.ask(session, "asked", utc_now()).version

    tuning.train(services, version, threading.Event())

    assert because(services.sessions, version) == (
        "kept_out",
        "only 0 settled queries have known correctness; 200 are needed",
    )
    with services.sessions.begin() as session:
        version = predictors.ask(session, "asked", utc_now()).version
    monkeypatch.setenv("ALLOTD_TICK_S", "never")

    tuning.train(services, version, threading.Event())

    state, why = because(services.sessions, version)
    assert state == "kept_out"
    assert why.startswith("training ended with code 1: ")
    assert "ALLOTD_TICK_S" in why


def test_a_training_that_is_broken_off_is_begun_anew_by_the_next_daemon(services: Services) -> None:
    with services.sessions.begin() as session:
        version = predictors.ask(session, "asked", utc_now()).version
    stop = threading.Event()
    stop.set()

    tuning.train(services, version, stop)

    assert because(services.sessions, version)[0] == "challenger"
    assert tuning.ask_if_due(services) == version
