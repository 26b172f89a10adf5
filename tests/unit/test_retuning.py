"""What is learned from settled queries, how challengers are judged, and how predictors take turns."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Label, PlanRow, PredictorRow, QueryRow, SampleRow, Tenant
from scheduler import drift, predictors, retuning, tuning
from scheduler.core import judging
from scheduler.core.judging import Judged
from scheduler.core.priors import fit_beta
from scheduler.errors import Conflict, NotFound
from scheduler.examples import is_held_out, read_examples, verdicts
from scheduler.learning import Drawn, Example, Learned
from scheduler.settings import Settings
from scheduler.states import PredictorState, QueryState
from scheduler.types import Arm, Lessons, Prediction, Query
from scheduler.wiring import Services
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, add_worker, new_sessions
from tests.unit.test_champion import BELIEVED, held_wave


class WordCounter:
    """A learner that reads: queries whose text says so are easy."""

    kind = "words"

    def __init__(self, version: str = "") -> None:
        self.version = version

    def fit(self, examples: Sequence[Example], version: str) -> Learned:
        return WordCounter(version)

    def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
        return [replace(BELIEVED, alpha=9.0 if "easy" in str(q.messages) else 1.0, beta=4.0) for q in queries]

    def content(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "version": self.version}

    def lessons(self) -> Mapping[str, Lessons]:
        return {}

    def about(self) -> Mapping[str, Any]:
        return {}


def example(number: int, word: str, right: int, judged: int = 1) -> Example:
    query = Query(
        id=number,
        model=MODEL,
        messages=({"role": "user", "content": word},),
        prompt_tokens=8,
        prompt_tokens_max=9,
        task="one",
    )
    drawn = tuple(Drawn(tokens=20, right=i < right) for i in range(judged))
    return Example(query=query, drawn=drawn, believed=BELIEVED)


def told_apart(number: int) -> list[Example]:
    """Examples whose text tells how hard they are."""
    dice = random.Random(2)
    words = ["easy" if i % 2 else "hard" for i in range(number)]
    return [example(i, word, int(dice.random() < (0.8 if word == "easy" else 0.2))) for i, word in enumerate(words)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retuning, "LEARNERS", (WordCounter(),))


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as factory:
        yield factory


def services_on(sessions: sessionmaker[Session], directory: Path) -> Services:
    settings = Settings(predictors_dir=directory, retune_examples_min=20)
    return Services(settings=settings, sessions=sessions, clock=lambda: NOW)


@pytest.mark.usefixtures("reads")
def test_a_challenger_that_is_better_on_unseen_queries_is_promoted_with_its_figures() -> None:
    verdict = retuning.judge(told_apart(400), None, "v1", examples_min=200)

    assert verdict.is_better
    assert "better: its log loss per query is +" in verdict.because
    assert verdict.card["gain"]["low"] > 0
    assert verdict.card["log_loss_per_sample"] < verdict.card["log_loss_per_sample_before"]
    assert verdict.card["train"] + verdict.card["held_out"] == 400
    assert [one["samples"] > 0 for one in verdict.card["reliability"]] == [True, True]  # it tells two kinds apart


def test_a_challenger_that_knows_no_more_than_plain_priors_is_kept_out_and_told_why() -> None:
    examples = [example(i, "sum", one.right) for i, one in enumerate(told_apart(400))]

    verdict = retuning.judge(examples, None, "v1", examples_min=200)

    assert not verdict.is_better
    assert "not surely better" in verdict.because
    assert "plain priors" in verdict.because


@pytest.mark.usefixtures("reads")
def test_better_by_luck_is_not_better() -> None:
    examples = [example(i, "easy" if i % 2 else "hard", int(i % 3 == 0)) for i in range(400)]

    verdict = retuning.judge(examples, None, "v1", examples_min=1)

    assert not verdict.is_better


def test_too_few_examples_train_nothing() -> None:
    verdict = retuning.judge(told_apart(30), None, "v1", examples_min=200)

    assert (verdict.is_better, verdict.learned) == (False, None)
    assert verdict.because == "only 30 settled queries have known correctness; 200 are needed"


@settings(max_examples=30)
@given(
    counts=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=20),
    alpha=st.floats(0.1, 10.0),
    beta=st.floats(0.1, 10.0),
)
def test_the_log_loss_is_that_of_the_sequences(counts: list[tuple[int, int]], alpha: float, beta: float) -> None:
    right = np.array([min(good, drawn) for good, drawn in counts])
    drawn = np.array([drawn for _, drawn in counts])
    losses = judging.log_losses(
        Judged(alpha=np.full(len(right), alpha), beta=np.full(len(right), beta), right=right, judged=drawn)
    )

    for loss, good, all_ in zip(losses, right, drawn, strict=True):
        chance, a, b = 1.0, alpha, beta
        for k in range(all_):
            chance *= (a if k < good else b) / (a + b)
            a, b = (a + 1, b) if k < good else (a, b + 1)
        assert loss == pytest.approx(-np.log(chance))


@settings(max_examples=30)
@given(alpha=st.floats(0.5, 8.0), beta=st.floats(0.5, 8.0), seed=st.integers(0, 9))
def test_a_fitted_prior_finds_the_truth_although_sampling_stops_at_success(
    alpha: float, beta: float, seed: int
) -> None:
    dice = np.random.default_rng(seed)
    first = dice.geometric(np.clip(dice.beta(alpha, beta, 800), 1e-6, 1.0))

    prior = fit_beta((first <= 6).astype(np.int64), np.minimum(first, 6))

    assert prior.mean == pytest.approx(alpha / (alpha + beta), abs=0.1)


def test_no_query_both_trains_and_judges_and_three_in_ten_judge() -> None:
    held = [is_held_out(i) for i in range(2000)]

    assert held == [is_held_out(i) for i in range(2000)]
    assert 500 < sum(held) < 700


def settled(session: Session, *verdicts: bool | None, answers: Sequence[str | None] = (), **values: Any) -> int:
    """A settled query with one sample per verdict, the first of which was chosen."""
    if session.get(Tenant, "tenant_acme") is None:
        add_worker(session)
        add_tenant(session)
    query = add_query(session, add_batch(session, session.get_one(Tenant, "tenant_acme")))
    wave_id = held_wave(session, query.id)
    rows = [
        SampleRow(
            query_id=query.id,
            wave_id=wave_id,
            position=i,
            text="",
            tokens=20,
            finish_reason="stop",
            correct=verdict,
            answer=answers[i] if answers else None,
            created_at=NOW,
        )
        for i, verdict in enumerate(verdicts)
    ]
    session.add_all(rows)
    session.flush()
    defaults = {"state": QueryState.ANSWERED, "finished_at": NOW, "correct": verdicts[0]}
    for name, value in (defaults | values).items():
        setattr(query, name, value)
    query.samples_drawn, query.chosen_sample_id = len(rows), rows[0].id
    session.flush()
    return query.id


def test_examples_are_settled_queries_of_which_something_is_known(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        known = settled(session, True, False, False)
        settled(session, None, None)
        settled(session, True, state=QueryState.RUNNING, finished_at=None)

        [found] = read_examples(session)

    assert (found.query.id, found.right, found.judged, found.tokens) == (known, 1, 3, (20, 20, 20))
    assert found.query.tenant_id == "tenant_acme"
    assert found.believed.version == "test"


@pytest.mark.parametrize(
    ("strategy", "judged_early"),
    [("self_consistency", False), ("asc@0.9", False), ("uniform", False), ("best_of_n", True), ("bandit", True)],
)
def test_an_example_says_whether_a_verdict_could_end_it(
    sessions: sessionmaker[Session], strategy: str, judged_early: bool
) -> None:
    with sessions.begin() as session:
        settled(session, True, False, verifier="numeric", reference="4")
        session.execute(update(PlanRow).values(strategy=strategy))

        [found] = read_examples(session)

    assert found.judged_early is judged_early


def test_a_later_label_speaks_for_all_samples_with_the_same_answer(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        right = settled(session, None, None, None, answers=("7", "7", "8"), correct=True)
        wrong = settled(session, None, None, None, answers=("7", "7", "8"), correct=False)
        overruled = settled(session, True, False, answers=("7", "8"), correct=False)

        found = {one.query.id: (one.right, one.judged) for one in read_examples(session)}

    assert found == {right: (2, 3), wrong: (0, 2), overruled: (0, 1)}


def test_an_answer_without_text_to_compare_is_labelled_alone() -> None:
    samples = [SimpleNamespace(id=1, answer=None, correct=None), SimpleNamespace(id=2, answer=None, correct=None)]

    assert verdicts(SimpleNamespace(correct=True, chosen_sample_id=1), samples) == [True, None]


def ask(sessions: sessionmaker[Session], minutes: int = 0) -> str:
    with sessions.begin() as session:
        return predictors.ask(session, "asked", NOW + timedelta(minutes=minutes)).version


def conclude(
    sessions: sessionmaker[Session], version: str, *, is_better: bool, minutes: int = 0, examples: int | None = None
) -> None:
    with sessions.begin() as session:
        predictors.conclude(
            session,
            version,
            is_better=is_better,
            because="so",
            card={} if examples is None else {"examples": examples},
            now=NOW + timedelta(minutes=minutes),
            file=(Path(f"{version}.skops"), "0" * 64),
        )


def states(sessions: sessionmaker[Session]) -> dict[str, str]:
    with sessions() as session:
        return {row.version: row.state for row in session.scalars(select(PredictorRow))}


def test_one_predictor_is_in_use_and_rollbacks_go_back_one_by_one_to_plain_priors(
    sessions: sessionmaker[Session],
) -> None:
    versions = []
    for minute in range(3):
        versions.append(ask(sessions, minute))
        conclude(sessions, versions[-1], is_better=True, minutes=minute)
    first, second, third = versions
    assert states(sessions) == {first: "retired", second: "retired", third: "champion"}

    for expected in (second, first, None):
        with sessions.begin() as session:
            row = predictors.roll_back(session, NOW + timedelta(hours=1))
            assert (row.version if row else None) == expected
    assert set(states(sessions).values()) == {"retired"}
    with sessions.begin() as session, pytest.raises(Conflict, match="plain priors"):
        predictors.roll_back(session, NOW)


def test_a_challenger_is_asked_for_once_and_concluded_once(sessions: sessionmaker[Session]) -> None:
    version = ask(sessions)
    assert ask(sessions, 1) == version

    conclude(sessions, version, is_better=False)
    conclude(sessions, version, is_better=True)

    assert states(sessions) == {version: "kept_out"}


def test_an_operator_may_promote_what_was_kept_out_but_nothing_without_a_file(sessions: sessionmaker[Session]) -> None:
    kept = ask(sessions)
    conclude(sessions, kept, is_better=False)
    waiting = ask(sessions, 1)

    with sessions.begin() as session:
        assert predictors.promote(session, kept, NOW).state == PredictorState.CHAMPION
        with pytest.raises(Conflict, match="in use already"):
            predictors.promote(session, kept, NOW)
        with pytest.raises(Conflict, match="no file"):
            predictors.promote(session, waiting, NOW)
        with pytest.raises(NotFound):
            predictors.promote(session, "another", NOW)


def test_training_is_due_when_there_is_as_much_that_is_new_as_it_needs(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    services = services_on(sessions, tmp_path)
    with sessions.begin() as session:
        for _ in range(19):
            settled(session, True)
    assert tuning.ask_if_due(services) is None
    with sessions.begin() as session:
        settled(session, False)

    version = tuning.ask_if_due(services)

    assert version is not None
    assert tuning.ask_if_due(services, looks_far=False) == version
    verdict = retuning.retune(services, version)
    assert "held-out" in verdict.because
    assert states(sessions) == {version: "kept_out"}
    assert tuning.ask_if_due(services) is None


@pytest.mark.parametrize(
    ("examples", "more", "because"), [(30, 29, None), (30, 30, tuning.GROWN), (0, 19, None), (0, 20, tuning.GROWN)]
)
def test_training_is_due_before_its_time_when_the_ledger_has_doubled(
    sessions: sessionmaker[Session], tmp_path: Path, examples: int, more: int, because: str | None
) -> None:
    with sessions.begin() as session:
        version = predictors.ask(session, "", NOW).version
    conclude(sessions, version, is_better=False, examples=examples)
    later = NOW + timedelta(seconds=tuning.DUE_EVERY_S)
    services = replace(services_on(sessions, tmp_path), clock=lambda: later)
    with sessions.begin() as session:
        for _ in range(more):
            settled(session, True, finished_at=later)

    asked = tuning.ask_if_due(services)

    assert (asked is None) == (because is None)
    with sessions() as session:
        assert asked is None or session.get_one(PredictorRow, asked).because == because


def test_a_ledger_of_which_only_the_newest_part_is_read_cannot_double(
    sessions: sessionmaker[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "EXAMPLES_MAX", 30)
    with sessions.begin() as session:
        version = predictors.ask(session, "", NOW).version
    conclude(sessions, version, is_better=False, examples=20)
    later = NOW + timedelta(seconds=tuning.DUE_EVERY_S)
    with sessions.begin() as session:
        for _ in range(60):
            settled(session, True, finished_at=later)

    assert tuning.ask_if_due(replace(services_on(sessions, tmp_path), clock=lambda: later)) is None


def test_what_was_told_later_of_queries_is_as_new_as_what_ended_later(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    later = NOW + timedelta(days=1)
    with sessions.begin() as session:
        told = [settled(session, None) for _ in range(20)]
    conclude(sessions, ask(sessions), is_better=False, examples=0)
    services = replace(services_on(sessions, tmp_path), clock=lambda: later)
    assert tuning.ask_if_due(services) is None

    with sessions.begin() as session:
        for query_id in told:
            session.get_one(QueryRow, query_id).correct = True
            session.add(Label(query_id=query_id, source="api", correct=True, created_at=later))

    assert tuning.ask_if_due(services) is not None


def test_what_is_known_is_seen_behind_any_number_of_queries_that_wait(
    sessions: sessionmaker[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "LABELS_AMONG", 20)
    with sessions.begin() as session:
        for _ in range(20):
            settled(session, True)
        for _ in range(20):
            settled(session, None, state=QueryState.QUEUED, finished_at=None)

    assert tuning.ask_if_due(services_on(sessions, tmp_path)) is not None


def test_a_champion_that_drifts_is_fitted_again_once_for_the_same_queries(
    sessions: sessionmaker[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "drift", lambda *_: "drift: so it says")
    services = replace(services_on(sessions, tmp_path), clock=lambda: NOW + timedelta(hours=1))
    conclude(sessions, ask(sessions), is_better=True, examples=drift.DRIFT_MIN * 2)
    with sessions.begin() as session:
        for _ in range(drift.DRIFT_MIN):
            settled(session, True, finished_at=NOW + timedelta(minutes=1))

    version = tuning.ask_if_due(services)

    assert version is not None
    conclude(sessions, version, is_better=False, examples=drift.DRIFT_MIN * 2)
    later = replace(services, clock=lambda: NOW + timedelta(hours=2))
    assert tuning.ask_if_due(later) is None


def test_a_champion_that_does_worse_than_its_card_is_fitted_again(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = PredictorRow(version="v1", state="champion", card_json="{}", because="", created_at=NOW)
    believed = replace(BELIEVED, alpha=9.0, beta=1.0, version="v1")
    rows = [replace(example(i, "", int(i % 2 == 0)), believed=believed) for i in range(drift.DRIFT_MIN)]
    monkeypatch.setattr(drift, "read_examples", lambda *_: rows)

    with sessions() as session:
        because = drift.drift(session, row, {"log_loss_per_sample": 0.4})
        assert because is not None
        assert because.startswith("drift: v1 has a log loss of 1.2")
        assert drift.drift(session, row, {"log_loss_per_sample": 1.3}) is None
        del rows[0]
        assert drift.drift(session, row, {"log_loss_per_sample": 0.4}) is None
