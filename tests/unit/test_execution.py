"""One query on its way through its strategy: paid wave by wave, and given back or ended as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Attempt, Batch, Entry, PlanRow, QueryRow, SampleRow, Tenant, Wave
from scheduler import execution, predictors, recovery, settlement
from scheduler.audit import discrepancies
from scheduler.engine import Abort, Generation, GenerationRequest, Progress
from scheduler.errors import EngineError, EngineRejected, EngineUnavailable, SchedulerError
from scheduler.execution import Drive, Flags
from scheduler.settings import Settings
from scheduler.states import AttemptState, BatchState, QueryState
from scheduler.tokens import counter_for
from scheduler.transactions import Many
from scheduler.types import Lessons, Llm, Sample, Usage
from tests.factories import (
    MODEL,
    NOW,
    WORKER,
    add_batch,
    add_cap,
    add_query,
    add_tenant,
    add_worker,
    fund,
    new_sessions,
)

I = TypeVar("I")  # noqa: E741
T = TypeVar("T")

PROMPT, TOKENS = 12, 20
PROMPT_HELD = counter_for(None).upper_bound(PROMPT)
Reply = Callable[[GenerationRequest, Abort], Generation] | Exception


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as factory:
        yield factory


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "BACKOFF_S", 0.001)


class ScriptedEngine:
    """Answers each wave as the script says, and then always with the right answer; remembers what it was asked."""

    def __init__(self, *script: Reply) -> None:
        self.script = list(script)
        self.asked: list[int] = []

    async def generate(self, request: GenerationRequest, abort: Abort, progress: Progress | None = None) -> Generation:
        self.asked.append(request.n)
        reply = self.script.pop(0) if self.script else answers("21")
        await asyncio.sleep(0)
        if isinstance(reply, Exception):
            raise reply
        return reply(request, abort)

    async def llms(self) -> tuple[Llm, ...]:
        return ()

    async def close(self) -> None:
        return None


class AtOnce:
    """Every step in a transaction of its own."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self.sessions = sessions

    async def alone(self, step: Callable[[Session], T], *, key: str = "") -> T:
        with self.sessions.begin() as session:
            return step(session)

    async def together(self, many: Many[I, T], item: I, *, key: str) -> T:
        with self.sessions.begin() as session:
            [result] = many(session, [item], NOW)
        if isinstance(result, SchedulerError):
            raise result
        return result


def answers(*texts: str) -> Reply:
    """Give these answers in turn, as many as are asked for."""

    def reply(request: GenerationRequest, _abort: Abort) -> Generation:
        samples = tuple(Sample(text=texts[i % len(texts)], tokens=TOKENS) for i in range(request.n))
        return Generation(samples=samples, usage=Usage(prompt=PROMPT, completion=TOKENS * request.n))

    return reply


def cut(_request: GenerationRequest, _abort: Abort) -> Generation:
    """Break off in the middle of the first sample."""
    half = Sample(text="2", tokens=TOKENS // 2, finish_reason="aborted")
    return Generation(samples=(half,), usage=Usage(prompt=PROMPT, completion=TOKENS // 2), interrupted=True)


def query_of(sessions: sessionmaker[Session], **values: Any) -> int:
    """A query with a numeric verifier and reference, whose plan is to vote on up to 8 samples."""
    with sessions.begin() as session:
        tenant = session.get(Tenant, "tenant_acme") or add_tenant(session)
        batch = add_batch(session, tenant)
        defaults: dict[str, Any] = {"verifier": "numeric", "reference": "21", "prompt_tokens_estimated": PROMPT}
        return add_query(session, batch, **(defaults | values)).id


def drive(
    sessions: sessionmaker[Session],
    query_id: int,
    engine: ScriptedEngine,
    *,
    strategy: str = "self_consistency",
    flags: Flags | None = None,
) -> None:
    """Fund an attempt at the query and drive it to its end."""
    drive_together(sessions, [query_id], engine, strategy=strategy, flags=flags)


def drive_together(
    sessions: sessionmaker[Session],
    query_ids: Sequence[int],
    engine: ScriptedEngine,
    *,
    strategy: str = "self_consistency",
    flags: Flags | None = None,
) -> None:
    """Fund an attempt at each of the queries and drive all of them beside each other."""
    with sessions.begin() as session:
        attempts = [fund(session, session.get_one(QueryRow, query_id)).attempt_id for query_id in query_ids]
        session.execute(update(Attempt).where(Attempt.id.in_(attempts)).values(state=AttemptState.DISPATCHED))
        session.execute(update(QueryRow).where(QueryRow.id.in_(query_ids)).values(state=QueryState.PLANNED))
        session.execute(update(PlanRow).values(strategy=strategy))
        works = settlement.claim(session, attempts, WORKER, NOW)

    async def run() -> None:
        drives = (
            Drive(
                work=work,
                engine=engine,
                transact=AtOnce(sessions),
                report=lambda _wave, _usage: None,
                flags=flags or Flags(),
                places=asyncio.Semaphore(len(works)),
            )
            for work in works
        )
        await asyncio.gather(*(drive.run() for drive in drives))

    asyncio.run(run())


def row(sessions: sessionmaker[Session], query_id: int) -> QueryRow:
    """The query as it stands now, after checking that the books balance and that nothing is held."""
    with sessions() as session:
        assert [str(d) for d in discrepancies(session)] == []
        assert session.scalar(select(func.sum(Wave.held_nanousd)).where(Wave.state == "held")) is None
        return session.get_one(QueryRow, query_id)


def test_a_unanimous_vote_ends_after_four_of_eight_samples(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)
    engine = ScriptedEngine()

    drive(sessions, query_id, engine)

    query = row(sessions, query_id)
    assert (query.state, query.because, query.correct) == (QueryState.ANSWERED, "vote settled", True)
    assert engine.asked == [4]
    assert query.samples_drawn == 4


def test_what_is_spent_is_the_samples_tokens_at_their_price(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)

    drive(sessions, query_id, ScriptedEngine(answers("1", "2", "21")))

    query = row(sessions, query_id)
    with sessions() as session:
        spent = session.scalar(select(func.sum(Entry.spent_delta_nanousd)))
        tokens = session.scalar(select(func.sum(SampleRow.tokens)))
        prompts = session.scalar(select(func.sum(Wave.prompt_tokens)))
    assert query.spent_nanousd == spent == 2 * (tokens or 0) + (prompts or 0)


def test_best_of_n_stops_at_the_first_verified_sample(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)
    engine = ScriptedEngine(answers("20"), answers("22"), answers("21"))

    drive(sessions, query_id, engine, strategy="best_of_n")

    query = row(sessions, query_id)
    assert (query.state, query.because, query.confidence) == (QueryState.ANSWERED, "verified", 1.0)
    assert query.samples_drawn == 3


def test_a_query_parks_when_its_tenants_cap_is_reached(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)
    with sessions.begin() as session:
        add_cap(session, session.get_one(Tenant, "tenant_acme"), PROMPT_HELD + 2 * 64 + 1)

    drive(sessions, query_id, ScriptedEngine(answers("1"), answers("2")))

    query = row(sessions, query_id)
    assert query.state == QueryState.PARKED
    assert (query.parked_because or "").startswith("cap ")
    assert query.samples_drawn >= 1


def test_a_resumed_query_keeps_its_samples_and_buys_only_the_rest(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)
    with sessions.begin() as session:
        cap = add_cap(session, session.get_one(Tenant, "tenant_acme"), PROMPT_HELD + 2 * 64 + 1)
    drive(sessions, query_id, ScriptedEngine())
    kept = row(sessions, query_id).samples_drawn
    with sessions.begin() as session:
        session.merge(cap).limit_nanousd = 10**9
        assert recovery.resume_parked(session, NOW, limit=10) == 1
    engine = ScriptedEngine()

    drive(sessions, query_id, engine)

    query = row(sessions, query_id)
    assert query.state == QueryState.ANSWERED
    assert query.samples_drawn == 4
    assert sum(engine.asked) == 4 - kept


def test_a_limit_of_the_querys_own_ends_it_with_the_best_answer_so_far(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions, limit_nanousd=PROMPT_HELD + 2 * 64 + 1)

    drive(sessions, query_id, ScriptedEngine())

    query = row(sessions, query_id)
    assert query.state == QueryState.BUDGET_STOPPED
    assert query.because == "query limit reached"
    assert query.chosen_sample_id is not None
    assert query.spent_nanousd <= PROMPT_HELD + 2 * 64 + 1


def test_money_that_siblings_only_hold_is_waited_for(sessions: sessionmaker[Session]) -> None:
    worst, cost = PROMPT_HELD + 2 * 64, PROMPT + 2 * TOKENS
    queries = 4
    with sessions.begin() as session:
        batch = add_batch(session, add_tenant(session), limit_nanousd=(queries - 1) * cost + worst)
        query_ids = [
            add_query(session, batch, verifier="numeric", reference="21", prompt_tokens_estimated=PROMPT).id
            for _ in range(queries)
        ]

    drive_together(sessions, query_ids, ScriptedEngine(), strategy="direct")

    assert [row(sessions, query_id).state for query_id in query_ids] == [QueryState.ANSWERED] * queries


def test_what_a_batch_cannot_pay_with_all_that_is_held_ends_at_once(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        batch = add_batch(session, add_tenant(session), limit_nanousd=PROMPT_HELD + 2 * 64)
        query_ids = [
            add_query(session, batch, verifier="numeric", reference="21", prompt_tokens_estimated=PROMPT).id
            for _ in range(3)
        ]

    drive_together(sessions, query_ids, ScriptedEngine(), strategy="direct")

    rows = [row(sessions, query_id) for query_id in query_ids]
    stopped = (QueryState.BUDGET_STOPPED, "batch limit reached")
    answered = (QueryState.ANSWERED, "the only sample")
    assert sorted((one.state, one.because) for one in rows) == [answered, answered, stopped]


def test_a_line_does_not_wait_for_money_that_its_own_limit_could_not_spend(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        batch = add_batch(session, add_tenant(session), limit_nanousd=10**6)
        batch.held_nanousd = 10**6 - 1
        query_id = add_query(session, batch, limit_nanousd=2, prompt_tokens_estimated=PROMPT).id

    drive(sessions, query_id, ScriptedEngine(), strategy="direct")

    with sessions() as session:
        query = session.get_one(QueryRow, query_id)
        assert (query.state, query.because) == (QueryState.BUDGET_STOPPED, "query limit reached")


def test_an_engine_that_is_away_is_waited_for_and_costs_nothing(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)

    drive(sessions, query_id, ScriptedEngine(*[EngineUnavailable()] * 5))

    query = row(sessions, query_id)
    assert query.state == QueryState.ANSWERED
    assert query.samples_drawn == 4


def test_an_engine_that_keeps_failing_fails_the_query(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)

    drive(sessions, query_id, ScriptedEngine(*[EngineError("boom")] * 3))

    query = row(sessions, query_id)
    assert query.state == QueryState.FAILED
    assert "boom" in (query.error_json or "")
    assert query.spent_nanousd == 0


def test_an_engine_that_fails_later_leaves_the_best_answer_so_far(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)

    drive(sessions, query_id, ScriptedEngine(answers("21", "7"), *[EngineError("boom")] * 3))

    query = row(sessions, query_id)
    assert (query.state, query.because) == (QueryState.ANSWERED, "engine failed; best so far")


def test_a_request_the_engine_refuses_fails_with_its_reason(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)

    drive(sessions, query_id, ScriptedEngine(EngineRejected("no such tool")))

    assert "no such tool" in (row(sessions, query_id).error_json or "")


@pytest.mark.parametrize(("strategy", "drawn"), [("self_consistency", 4), ("best_of_n", 1)])
def test_a_refusal_that_comes_later_leaves_the_best_answer_so_far(
    sessions: sessionmaker[Session], strategy: str, drawn: int
) -> None:
    query_id = query_of(sessions)

    drive(sessions, query_id, ScriptedEngine(answers("7", "8"), EngineRejected("too many")), strategy=strategy)

    query = row(sessions, query_id)
    assert (query.state, query.because) == (QueryState.ANSWERED, "engine refused more; best so far")
    assert (query.samples_drawn, query.chosen_sample_id is not None) == (drawn, True)


def test_a_running_query_whose_batch_expires_keeps_the_best_of_what_it_paid_for(
    sessions: sessionmaker[Session],
) -> None:
    query_id = query_of(sessions)
    flags = Flags()

    def then_expire(_request: GenerationRequest, _abort: Abort) -> Generation:
        flags.cancelled = True  # what a worker is told of a batch that is over, for whatever reason
        sample = Sample(text="21", tokens=TOKENS)
        return Generation(samples=(sample,), usage=Usage(prompt=PROMPT, completion=TOKENS))

    drive(sessions, query_id, ScriptedEngine(then_expire), flags=flags)

    query = row(sessions, query_id)
    assert (query.state, query.because) == (QueryState.EXPIRED, settlement.EXPIRED_BEST)
    assert (query.chosen_sample_id is not None, query.correct) == (True, True)


def test_a_broken_off_sample_is_paid_for_and_drawn_again(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)
    engine = ScriptedEngine(cut)

    drive(sessions, query_id, engine)

    query = row(sessions, query_id)
    assert query.state == QueryState.ANSWERED
    assert engine.asked == [4, 4]
    assert query.completion_tokens == TOKENS // 2 + 4 * TOKENS


def test_a_query_of_a_cancelled_batch_ends_cancelled_and_paid(sessions: sessionmaker[Session]) -> None:
    """llm-d-batch-gateway#657: a request in flight is not cancelled; here that takes a wave at most."""
    query_id = query_of(sessions)
    flags = Flags()

    def cancelled_meanwhile(request: GenerationRequest, abort: Abort) -> Generation:
        with sessions.begin() as session:
            session.execute(update(Batch).values(state=BatchState.CANCELLING))
        flags.cancelled = True
        flags.abort.set()
        return cut(request, abort)

    drive(sessions, query_id, ScriptedEngine(cancelled_meanwhile), flags=flags)

    query = row(sessions, query_id)
    assert query.state == QueryState.CANCELLED
    assert query.spent_nanousd == PROMPT + TOKENS // 2 * 2


def test_a_stopping_worker_gives_its_queries_back(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)
    flags = Flags(stopping=True)
    flags.abort.set()

    drive(sessions, query_id, ScriptedEngine(), flags=flags)

    assert row(sessions, query_id).state == QueryState.QUEUED


def test_a_worker_that_lost_its_lease_writes_nothing(sessions: sessionmaker[Session]) -> None:
    query_id = query_of(sessions)

    def declared_dead(request: GenerationRequest, abort: Abort) -> Generation:
        with sessions.begin() as session:
            attempt_id = session.scalars(select(Attempt.id)).one()
            assert recovery.take_back(session, [attempt_id], Settings(), NOW) == 1
        reply = answers("21")
        assert not isinstance(reply, Exception)
        return reply(request, abort)

    drive(sessions, query_id, ScriptedEngine(declared_dead))

    query = row(sessions, query_id)
    assert (query.state, query.samples_drawn, query.spent_nanousd) == (QueryState.QUEUED, 0, 0)


def test_a_silent_workers_attempt_is_found_and_a_beating_ones_is_not(sessions: sessionmaker[Session]) -> None:
    settings = Settings()
    with sessions.begin() as session:
        batch = add_batch(session, add_tenant(session))
        silent = fund(session, add_query(session, batch), worker_id="silent")
        fund(session, add_query(session, batch), worker_id="beating")
        add_worker(session, "beating")
        add_worker(session, "silent", heartbeat_at=NOW.replace(hour=1))

        lost = recovery.lost_attempts(session, settings, NOW)

    assert lost == [silent.attempt_id]


def test_a_query_under_which_workers_keep_dying_fails(sessions: sessionmaker[Session]) -> None:
    settings = Settings(attempts_max=2)
    with sessions.begin() as session:
        query = add_query(session, add_batch(session, add_tenant(session)))
        for _ in range(2):
            funded = fund(session, query)
            recovery.take_back(session, [funded.attempt_id], settings, NOW)
            session.refresh(query)

    assert query.state == QueryState.FAILED
    assert query.because == "attempts_exhausted"


def test_a_worker_gets_what_the_plans_predictor_learned_of_samples(sessions: sessionmaker[Session]) -> None:
    lessons = Lessons(logprob_usual=-0.2, worth_log=0.1, failing=(1.0, 2.0), leading=(0.5,))
    query_id = query_of(sessions)
    with sessions.begin() as session:
        asked = predictors.ask(session, "asked", NOW).version
        predictors.conclude(
            session, asked, is_better=True, because="so", card={}, now=NOW, lessons={MODEL: lessons, "other": Lessons()}
        )
        funded = fund(session, session.get_one(QueryRow, query_id))
        session.execute(update(Attempt).values(state=AttemptState.DISPATCHED))
        session.execute(update(QueryRow).values(state=QueryState.PLANNED))
        session.execute(update(PlanRow).values(predictor_version=asked, tokens_mean=12.5))
        [work] = settlement.claim(session, [funded.attempt_id], WORKER, NOW)

    assert (work.plan.lessons, work.plan.tokens_mean) == (lessons, 12.5)
