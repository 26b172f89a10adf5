"""Queries that several models may answer: the daemon chooses, and asks another where one fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Attempt, Batch, Cap, PlanRow, QueryRow, SampleRow, Tenant, Wave
from scheduler import ledger, pacing, recovery, settlement
from scheduler.audit import discrepancies
from scheduler.budgets import allot_window
from scheduler.drafts import Draft, draft_plans
from scheduler.examples import read_examples
from scheduler.execution import Drive
from scheduler.finalization import response_body
from scheduler.planning import fund_window
from scheduler.prediction import Predictor
from scheduler.priors import PlainPriors
from scheduler.reports import By, Scope, spend_report
from scheduler.settings import Settings
from scheduler.states import QueryState
from scheduler.types import Arm, Prediction, Query, Sample, Usage
from tests.factories import NOW, WORKER, add_batch, add_cap, add_llm, add_query, add_tenant, new_sessions
from tests.unit.test_execution import AtOnce, ScriptedEngine, answers

SMALL, LARGE = "fake", "large"
"""A model of 1 and 2 nano-dollars a prompt and a completion token, and one of ten times as much."""
SETTINGS = Settings(explore_share=0.0)
JUDGED: dict[str, Any] = {"verifier": "numeric", "reference": "21", "samples_max": 2, "tokens_max": 20}
MODELS: dict[str, Any] = {"models_json": json.dumps([SMALL, LARGE])}


class Believing:
    """Believes one thing of each model."""

    version = "test"

    def __init__(self, **beliefs: tuple[float, float]) -> None:
        self.beliefs = {SMALL: beliefs["small"], LARGE: beliefs["large"]}

    def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
        assert [query.model for query in queries] == [arm.model for arm in arms]
        return [
            Prediction(alpha=alpha, beta=beta, tokens_p50=20, tokens_p90=20, version=self.version)
            for alpha, beta in (self.beliefs[query.model] for query in queries)
        ]


EVEN = Believing(small=(1.0, 1.0), large=(1.0, 1.0))


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as factory:
        yield factory


def begin(sessions: sessionmaker[Session], *, cap_nanousd: int | None = None, **values: Any) -> int:
    """A query that both models may answer."""
    with sessions.begin() as session:
        tenant = add_tenant(session)
        add_llm(session, LARGE, prompt_nanousd=10, completion_nanousd=20)
        if cap_nanousd is not None:
            add_cap(session, tenant, cap_nanousd)
        batch = add_batch(session, tenant)
        return add_query(session, batch, prompt_tokens_estimated=12, **(MODELS | JUDGED | values)).id


def planned(session: Session, predictor: Predictor = EVEN, *, may_abandon: bool = False) -> list[Draft]:
    """The window of all queries that wait, as the daemon would plan it."""
    rows = session.scalars(select(QueryRow).where(QueryRow.state == QueryState.QUEUED)).all()
    window = allot_window(
        session, draft_plans(session, rows, predictor, SETTINGS, NOW), SETTINGS, NOW, may_abandon=may_abandon
    )
    pacing.remember(session, window.moves, NOW)
    return window.drafts


def attempt(sessions: sessionmaker[Session], engine: ScriptedEngine, predictor: Predictor = EVEN) -> PlanRow:
    """Plan the query that waits and drive it as far as one attempt goes; returns the plan."""
    with sessions.begin() as session:
        [attempt_id] = fund_window(session, planned(session, predictor), NOW)
        [work] = settlement.claim(session, [attempt_id], WORKER, NOW)
        plan = session.get_one(PlanRow, session.get_one(Attempt, attempt_id).plan_id)
        session.expunge(plan)

    async def run() -> None:
        await Drive(work=work, engine=engine, transact=AtOnce(sessions), report=lambda _wave, _usage: None).run()

    asyncio.run(run())
    with sessions() as session:
        assert [str(d) for d in discrepancies(session)] == []
    return plan


def row(sessions: sessionmaker[Session], query_id: int) -> QueryRow:
    with sessions() as session:
        return session.get_one(QueryRow, query_id)


def test_the_model_with_the_best_chance_for_its_cost_is_asked_first(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions)

    plan = attempt(sessions, ScriptedEngine(answers("21")))

    query = row(sessions, query_id)
    assert (plan.model, plan.samples_max, plan.escalates) == (SMALL, 2, True)
    assert (query.state, query.model, query.correct, query.samples_drawn) == (QueryState.ANSWERED, SMALL, True, 1)


def test_a_cheap_model_that_never_succeeds_is_not_asked_first(sessions: sessionmaker[Session]) -> None:
    begin(sessions)

    plan = attempt(sessions, ScriptedEngine(answers("21")), Believing(small=(0.1, 9.9), large=(9.0, 1.0)))

    assert plan.model == LARGE


def test_where_one_model_fails_the_other_is_asked_and_its_answer_is_named(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions)
    engine = ScriptedEngine(answers("1"), answers("1"))

    attempt(sessions, engine)
    between = row(sessions, query_id)
    plan = attempt(sessions, engine)

    query = row(sessions, query_id)
    assert (between.state, between.samples_drawn) == (QueryState.QUEUED, 2)
    assert (plan.model, plan.escalates) == (LARGE, False)
    assert (query.state, query.model, query.because, query.correct) == (QueryState.ANSWERED, LARGE, "verified", True)
    assert query.samples_drawn == 3
    with sessions() as session:
        assert response_body(session, session.get_one(QueryRow, query_id))["model"] == LARGE


def test_a_query_of_two_models_never_seems_to_cost_more_than_all_its_samples(sessions: sessionmaker[Session]) -> None:
    begin(sessions)
    engine = ScriptedEngine(*[answers("1")] * 4)
    attempt(sessions, engine)
    attempt(sessions, engine)

    with sessions() as session:
        total = spend_report(session, Scope(), By.MODEL, NOW).total

    assert total.own_samples == 4
    assert total.uniform_cost_nanousd == total.own_cost_nanousd > 0


def test_failures_of_one_model_count_against_the_next(sessions: sessionmaker[Session]) -> None:
    begin(sessions)
    engine = ScriptedEngine(answers("1"), answers("1"))

    attempt(sessions, engine)
    plan = attempt(sessions, engine)

    assert plan.alpha / (plan.alpha + plan.beta) < 0.5


def test_where_all_models_fail_the_query_ends_with_an_answer(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions)
    engine = ScriptedEngine(*[answers("1")] * 4)

    attempt(sessions, engine)
    attempt(sessions, engine)

    query = row(sessions, query_id)
    assert (query.state, query.correct, query.samples_drawn) == (QueryState.ANSWERED, False, 4)
    assert query.chosen_sample_id is not None


def test_an_answer_of_the_first_model_is_kept_where_money_ends_before_the_second(
    sessions: sessionmaker[Session],
) -> None:
    query_id = begin(sessions)
    engine = ScriptedEngine(answers("1"), answers("1"))

    attempt(sessions, engine)
    with sessions.begin() as session:
        session.execute(update(Batch).values(limit_nanousd=300))
    attempt(sessions, engine)

    query = row(sessions, query_id)
    assert (query.state, query.samples_drawn) == (QueryState.BUDGET_STOPPED, 2)
    assert query.chosen_sample_id is not None


def lose(sessions: sessionmaker[Session], *bought: tuple[str, bool]) -> None:
    """Plan the query that waits, buy these answers, right or wrong, and lose the worker."""
    with sessions.begin() as session:
        [attempt_id] = fund_window(session, planned(session), NOW)
        [work] = settlement.claim(session, [attempt_id], WORKER, NOW)
        for text, correct in bought:
            buy(session, work.funded, text, correct=correct)
        recovery.take_back(session, [attempt_id], SETTINGS, NOW)


def test_samples_of_a_lost_attempt_are_not_bought_again(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions, samples_max=4)
    lose(sessions, ("1", False))

    plan = attempt(sessions, ScriptedEngine(answers("21")))

    query = row(sessions, query_id)
    assert (plan.model, plan.samples_max) == (SMALL, 4)
    assert (query.state, query.samples_drawn) == (QueryState.ANSWERED, 2)


def test_an_accepted_answer_of_a_lost_attempt_ends_the_query(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions)
    lose(sessions, ("21", True))

    attempt(sessions, ScriptedEngine())

    query = row(sessions, query_id)
    assert (query.state, query.correct, query.samples_drawn) == (QueryState.ANSWERED, True, 1)


def buy(session: Session, funded: ledger.Funded, text: str, *, correct: bool) -> None:
    """One sample, settled."""
    request = ledger.WaveRequest(funded=funded, samples=1, tokens_max=20, tokens_floor=20, prompt_tokens=12)
    hold = ledger.reserve(session, request, NOW)
    sample = Sample(text=text, tokens=5, answer=text, correct=correct)
    usage = Usage(prompt=12, completion=5)
    ledger.settle(
        session,
        ledger.Settlement(funded=funded, wave_id=hold.wave_id, usage=usage, latency_s=1.0, samples=(sample,)),
        NOW,
    )


def test_without_a_verifier_the_likelier_model_votes_where_money_is_plenty(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions, reference=None)

    plan = attempt(sessions, ScriptedEngine(answers("7")), Believing(small=(2.0, 2.0), large=(3.0, 1.0)))

    assert (plan.model, plan.strategy, plan.escalates) == (LARGE, "self_consistency", False)
    assert row(sessions, query_id).model == LARGE


def test_without_a_verifier_the_cheaper_model_votes_where_money_is_scarce(sessions: sessionmaker[Session]) -> None:
    begin(sessions, reference=None, cap_nanousd=400)

    plan = attempt(sessions, ScriptedEngine(answers("7")), Believing(small=(2.0, 2.0), large=(3.0, 1.0)))

    assert plan.model == SMALL


def test_of_models_believed_equal_the_cheaper_answers(sessions: sessionmaker[Session]) -> None:
    begin(sessions, reference=None)

    assert attempt(sessions, ScriptedEngine(answers("7"))).model == SMALL


def test_a_scarce_budget_escalates_only_where_that_is_worth_its_price(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions, cap_nanousd=300)

    plan = attempt(sessions, ScriptedEngine(*[answers("1")] * 2))

    assert (plan.model, plan.escalates) == (SMALL, False)
    assert row(sessions, query_id).state == QueryState.ANSWERED


def test_a_model_whose_own_cap_is_used_up_is_passed_over(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions)
    with sessions.begin() as session:
        add_cap(session, session.scalars(select(Tenant)).one(), 10, model=SMALL)

    plan = attempt(sessions, ScriptedEngine(answers("21")))

    assert plan.model == LARGE
    assert row(sessions, query_id).state == QueryState.ANSWERED


def test_a_query_that_one_models_cap_stops_in_the_middle_goes_on_with_the_other(
    sessions: sessionmaker[Session],
) -> None:
    query_id = begin(sessions)
    with sessions.begin() as session:
        add_cap(session, session.scalars(select(Tenant)).one(), 160, model=SMALL)

    first = attempt(sessions, ScriptedEngine(answers("3"), answers("4")))
    then = attempt(sessions, ScriptedEngine(answers("21")))

    assert (first.model, first.samples_max) == (SMALL, 2)
    assert then.model == LARGE
    assert row(sessions, query_id).state == QueryState.ANSWERED
    assert row(sessions, query_id).samples_drawn == 2


def test_a_query_that_no_cap_can_pay_waits_for_the_one_that_lacks_least(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions)
    with sessions.begin() as session:
        tenant = session.scalars(select(Tenant)).one()
        add_cap(session, tenant, 1, model=SMALL)
        add_cap(session, tenant, 1_600, model=LARGE)
        assert fund_window(session, planned(session), NOW) == []

    assert row(sessions, query_id).state == QueryState.PARKED
    assert row(sessions, query_id).model == LARGE
    with sessions.begin() as session:
        session.execute(update(Cap).where(Cap.model == LARGE).values(limit_nanousd=100_000))
        assert recovery.resume_parked(session, NOW, limit=10) == 1
    assert attempt(sessions, ScriptedEngine(answers("21"))).model == LARGE


def test_a_cap_on_one_model_abandons_no_query_that_another_answers(sessions: sessionmaker[Session]) -> None:
    begin(sessions)
    with sessions.begin() as session:
        add_cap(session, session.scalars(select(Tenant)).one(), 400, model=SMALL)
        [draft] = planned(session, Believing(small=(0.3, 9.0), large=(8.0, 2.0)), may_abandon=True)

    assert (draft.abandoned_because, draft.plan.arm.model) == (None, LARGE)


def test_a_query_that_has_begun_is_not_abandoned_where_its_first_models_cap_is_used_up(
    sessions: sessionmaker[Session],
) -> None:
    begin(sessions, cap_nanousd=2_000)
    believed = Believing(small=(1.0, 1.0), large=(0.02, 9.0))
    attempt(sessions, ScriptedEngine(*[answers("1")] * 2), Believing(small=(1.0, 1.0), large=(1.0, 1.0)))
    with sessions.begin() as session:
        add_cap(session, session.scalars(select(Tenant)).one(), 1, model=SMALL)
        session.execute(update(QueryRow).values(state=QueryState.QUEUED))
        [draft] = planned(session, believed, may_abandon=True)

    assert draft.abandoned_because is None
    assert draft.plan.arm.model == LARGE
    assert draft.prediction.success_rate < 0.02 / 9.02


def test_a_model_that_the_querys_own_limit_cannot_pay_is_passed_over(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions, reference=None, limit_nanousd=300)

    plan = attempt(sessions, ScriptedEngine(answers("7")), Believing(small=(2.0, 2.0), large=(3.0, 1.0)))

    assert plan.model == SMALL
    assert row(sessions, query_id).state == QueryState.ANSWERED


@pytest.mark.parametrize("greedy", [{"samples_max": 1}, {"body": {"temperature": 0}}])
def test_one_sample_of_each_model_is_a_cascade_too(sessions: sessionmaker[Session], greedy: dict[str, Any]) -> None:
    query_id = begin(sessions, **greedy)
    engine = ScriptedEngine(answers("1"))

    plans = [attempt(sessions, engine), attempt(sessions, engine)]

    assert [(plan.model, plan.samples_max) for plan in plans] == [(SMALL, 1), (LARGE, 1)]
    assert row(sessions, query_id).correct is True


def test_each_model_learns_from_its_own_samples(sessions: sessionmaker[Session]) -> None:
    begin(sessions)
    engine = ScriptedEngine(answers("1"), answers("1"))
    attempt(sessions, engine)
    attempt(sessions, engine)

    plain = PlainPriors()
    with sessions() as session:
        examples = read_examples(session)
        plain.read_on(session)
        of_model = select(SampleRow.correct).join(Wave, Wave.id == SampleRow.wave_id).order_by(SampleRow.id)
        by_model = {m: list(session.scalars(of_model.where(Wave.model == m))) for m in (SMALL, LARGE)}
    assert by_model == {SMALL: [False, False], LARGE: [True]}
    assert {e.query.model: [one.right for one in e.drawn] for e in examples} == by_model
    small, large = plain.predict(
        [examples[0].query, examples[1].query], [Arm(model=m, strategy="best_of_n") for m in (SMALL, LARGE)]
    )
    assert small.success_rate < large.success_rate


def test_five_plans_that_nobody_died_under_do_not_count_as_five_deaths(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions, attempts=Settings().attempts_max)
    lose(sessions)

    assert row(sessions, query_id).state == QueryState.QUEUED


def test_a_plan_that_bought_nothing_is_not_made_again(sessions: sessionmaker[Session]) -> None:
    query_id = begin(sessions)
    lose(sessions, ("1", False), ("1", False))

    plan = attempt(sessions, ScriptedEngine(*[answers("1")] * 2))

    assert (plan.model, row(sessions, query_id).state) == (LARGE, QueryState.ANSWERED)
