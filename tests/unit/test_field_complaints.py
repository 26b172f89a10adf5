"""What users of other systems complain of, each as a test that it cannot happen here. Docstrings cite where.

Those that need several processes are in tests/integration/test_races.py, and its docstrings cite theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch, CapPeriod, Entry, PriceRow, QueryRow, SampleRow, Tenant
from scheduler import ledger, recovery
from scheduler.batch_view import batch_object
from scheduler.caps import set_cap
from scheduler.core.fairness import DeficitRoundRobin
from scheduler.core.periods import Period
from scheduler.core.pricing import Price
from scheduler.drafts import allot, as_query
from scheduler.engine import Abort, Generation, GenerationRequest
from scheduler.errors import CapReached, ModelUnpriced
from scheduler.finalization import finalize, output_chunks
from scheduler.planning import choose_window
from scheduler.settings import Settings
from scheduler.settlement import kept_samples
from scheduler.states import QueryState
from scheduler.types import Arm, Sample, Usage
from tests.factories import MODEL, NOW, add_batch, add_cap, add_query, add_tenant, add_worker, fund, new_sessions
from tests.unit.answering import answer
from tests.unit.test_execution import ScriptedEngine, cut, drive, query_of, row

PROMPT, TOKENS = 10, 50
WAVE = PROMPT + 2 * TOKENS
"""The most that a wave of one sample costs, in nano-dollars."""
TOMORROW = NOW + timedelta(days=1)


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    with new_sessions() as factory:
        yield factory


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    with sessions() as opened:
        yield opened


@pytest.fixture
def tenant(session: Session) -> Tenant:
    return add_tenant(session)


@pytest.fixture
def funded(session: Session, tenant: Tenant) -> ledger.Funded:
    return fund(session, add_query(session, add_batch(session, tenant)))


def asked(funded: ledger.Funded) -> ledger.WaveRequest:
    return ledger.WaveRequest(funded=funded, samples=1, tokens_max=TOKENS, tokens_floor=TOKENS, prompt_tokens=PROMPT)


def done(funded: ledger.Funded, hold: ledger.Reservation, usage: Usage, *samples: Sample) -> ledger.Settlement:
    return ledger.Settlement(funded=funded, wave_id=hold.wave_id, usage=usage, latency_s=1.0, samples=samples)


def spend(session: Session, funded: ledger.Funded, completion: int = TOKENS) -> None:
    """Reserve a wave and use it up."""
    hold = ledger.reserve(session, asked(funded), NOW)
    sample = Sample(text="21", tokens=completion)
    ledger.settle(session, done(funded, hold, Usage(prompt=PROMPT, completion=completion), sample), NOW)


def test_what_cannot_be_priced_is_refused_and_not_merely_watched(session: Session, tenant: Tenant) -> None:
    """BerriAI/litellm#35524: no reservation at all where the cost cannot be estimated."""
    with pytest.raises(ModelUnpriced, match="allotd price set unknown"):
        ledger.price_at(session, "unknown", NOW)


def test_a_cap_that_is_set_later_counts_what_was_spent_before_it(
    session: Session, tenant: Tenant, funded: ledger.Funded
) -> None:
    """BerriAI/litellm#26672: 99.10 spent under a maximum of 30 that was attached afterwards."""
    spend(session, funded)
    set_cap(session, tenant, limit_nanousd=WAVE, period=Period.MONTH, now=NOW)

    with pytest.raises(CapReached):
        ledger.reserve(session, asked(funded), NOW)


@pytest.mark.parametrize("cached", [0, PROMPT])
def test_a_hold_covers_the_dearest_way_in_which_the_tokens_can_be_billed(cached: int) -> None:
    """BerriAI/litellm PR#40002: the hold took the lower of two rates, which was half of the true cost."""
    price = Price(id=1, model=MODEL, prompt_nanousd=3, cached_nanousd=7, completion_nanousd=5)
    usage = Usage(prompt=PROMPT, cached=cached, completion=TOKENS)

    assert price.most_nanousd(PROMPT, 1, TOKENS) >= price.cost_nanousd(usage)


def test_a_cap_is_not_blocked_by_what_nobody_will_spend(session: Session, tenant: Tenant) -> None:
    """BerriAI/litellm PR#38647: worst cases pin a budget at its limit while nothing has been spent."""
    add_cap(session, tenant, 3 * WAVE)
    batch = add_batch(session, tenant)
    queries = [fund(session, add_query(session, batch)) for _ in range(12)]

    for funded in queries:
        spend(session, funded, completion=5)

    session.refresh(tenant)
    assert tenant.spent_nanousd == 12 * (PROMPT + 2 * 5)
    assert tenant.held_nanousd == 0


def test_a_request_without_max_tokens_holds_a_default_and_not_all_that_is_left(
    session: Session, tenant: Tenant
) -> None:
    """BerriAI/litellm PR#27509: a missing max_tokens reserves the whole headroom."""
    query = add_query(session, add_batch(session, tenant))
    settings = Settings(tokens_max=300)

    plan = allot(query, as_query(query, None), Arm(model=MODEL, strategy="direct"), None, settings)

    assert plan.tokens_max == 300


def test_a_cancelled_query_leaves_no_hold_and_pays_for_what_was_made(sessions: sessionmaker[Session]) -> None:
    """BerriAI/litellm PR#30522: cancelled requests leak their holds. #13245: cancelled streams are billed nothing."""
    query_id = query_of(sessions)

    drive(sessions, query_id, ScriptedEngine(cut, cut, cut))

    query = row(sessions, query_id)  # asserts that nothing is held
    with sessions() as session:
        assert query.completion_tokens == sum(session.scalars(select(SampleRow.tokens)))
        assert query.spent_nanousd == query.prompt_tokens + 2 * query.completion_tokens > 0


def test_a_usage_of_zero_is_billed_as_zero(session: Session, tenant: Tenant, funded: ledger.Funded) -> None:
    """BerriAI/litellm#37992: an explicit zero is over-billed with local estimates."""
    hold = ledger.reserve(session, asked(funded), NOW)

    ledger.settle(session, done(funded, hold, Usage(), Sample(text="", tokens=7)), NOW)

    assert (tenant.spent_nanousd, tenant.held_nanousd) == (0, 0)


def test_queries_of_a_batch_are_under_their_tenants_cap(
    session: Session, tenant: Tenant, funded: ledger.Funded
) -> None:
    """BerriAI/litellm#12794: the batch path never looks at the team's budget."""
    add_cap(session, tenant, WAVE - 1)

    with pytest.raises(CapReached, match="cap "):
        ledger.reserve(session, asked(funded), NOW)


def test_looking_at_a_batch_costs_nothing(session: Session, tenant: Tenant) -> None:
    """BerriAI/litellm#12084: the spend of a batch is added again each time it is retrieved."""
    batch = add_batch(session, tenant)
    spend(session, fund(session, add_query(session, batch)))
    entries = session.scalar(select(func.count()).select_from(Entry))

    for _ in range(3):
        batch_object(session, batch)
        b"".join(output_chunks(session, batch, "output"))
        finalize(session, batch, NOW)

    session.refresh(tenant)
    assert tenant.spent_nanousd == WAVE
    assert session.scalar(select(func.count()).select_from(Entry)) == entries


def test_whatever_is_settled_has_its_entry_even_where_it_was_free(session: Session, funded: ledger.Funded) -> None:
    """BerriAI/litellm#35358: a batch was reconciled and no row of spend written, silently."""
    hold = ledger.reserve(session, asked(funded), NOW)

    ledger.settle(session, done(funded, hold, Usage()), NOW)

    assert session.scalars(select(Entry.kind).order_by(Entry.id)).all() == ["reserve", "settle", "release"]


def test_a_restart_costs_an_attempt_and_no_query(session: Session, tenant: Tenant, funded: ledger.Funded) -> None:
    """BerriAI/litellm-docs#1567: a restart of the proxy fails the batch with `runner_lost`."""
    spend(session, funded)
    ledger.reserve(session, asked(funded), NOW)

    recovery.take_back(session, [funded.attempt_id], Settings(), NOW)

    query = session.get_one(QueryRow, funded.query_id, populate_existing=True)
    assert query.state == QueryState.QUEUED
    assert len(kept_samples(session, [query.id])[query.id]) == 1
    session.refresh(tenant)
    assert (tenant.spent_nanousd, tenant.held_nanousd) == (WAVE, 0)


def test_a_new_day_gives_a_full_cap_without_any_job_that_resets_it(
    session: Session, tenant: Tenant, funded: ledger.Funded
) -> None:
    """BerriAI/litellm#8364: a budget never resets, because the job that should have done it did not run."""
    add_cap(session, tenant, WAVE, period="day")
    spend(session, funded)

    assert ledger.reserve(session, asked(funded), TOMORROW).held_nanousd == WAVE


def test_nothing_but_time_turns_a_period(session: Session, tenant: Tenant, funded: ledger.Funded) -> None:
    """BerriAI/litellm#22013: a NULL in budget_reset_at wipes the spend within minutes."""
    add_cap(session, tenant, WAVE, period="total")  # whose end is NULL
    spend(session, funded)

    with pytest.raises(CapReached):
        ledger.reserve(session, asked(funded), NOW + timedelta(days=4000))


def test_a_turn_of_the_period_keeps_what_was_spent_in_the_last_one_and_in_all(
    session: Session, tenant: Tenant, funded: ledger.Funded
) -> None:
    """BerriAI/litellm PR#25646: the reset destroys the lifetime spend."""
    add_cap(session, tenant, WAVE, period="day")
    spend(session, funded)

    ledger.reserve(session, asked(funded), TOMORROW)

    periods = select(CapPeriod.spent_nanousd, CapPeriod.held_nanousd).order_by(CapPeriod.starts_at)
    assert [tuple(period) for period in session.execute(periods)] == [(WAVE, 0), (0, WAVE)]
    session.refresh(tenant)
    assert tenant.spent_nanousd == WAVE


def test_a_price_that_is_corrected_leaves_the_rows_that_name_the_old_one(
    session: Session, tenant: Tenant, funded: ledger.Funded
) -> None:
    """BerriAI/litellm#20615: one mispriced model blocks its user until log rows are deleted by hand."""
    spend(session, funded)
    wrong = session.scalars(select(PriceRow.id)).one()
    values = {"prompt_nanousd": 1, "cached_nanousd": 1, "completion_nanousd": 1}
    session.add(PriceRow(model=MODEL, effective_at=NOW, created_at=NOW, **values))
    session.flush()

    later = ledger.price_at(session, MODEL, NOW)

    assert later.completion_nanousd == 1
    assert set(session.scalars(select(Entry.price_id))) == {wrong}


def test_a_sample_that_was_whole_when_the_wave_was_cut_is_kept_and_used(sessions: sessionmaker[Session]) -> None:
    """Red-Hat-AI-Innovation-Team/its_hub PR#266: an early stop drops finished samples whose tokens were counted."""

    def cut_after_one(request: GenerationRequest, abort: Abort) -> Generation:
        whole, half = Sample(text="21", tokens=20), Sample(text="2", tokens=5, finish_reason="aborted")
        return Generation(samples=(whole, half), usage=Usage(prompt=12, completion=25), interrupted=True)

    query_id = query_of(sessions)
    engine = ScriptedEngine(cut_after_one)

    drive(sessions, query_id, engine)

    assert engine.asked == [4, 3]  # the whole one of the cut wave is not bought again
    assert row(sessions, query_id).state == QueryState.ANSWERED


def test_a_tenant_with_many_lines_takes_turns_with_one_that_has_few(session: Session) -> None:
    """llm-d-batch-gateway#401: fairness between tenants is still asked for there."""
    add_worker(session, capacity=10)
    large, small = add_batch(session, add_tenant(session, "large")), add_batch(session, add_tenant(session, "small"))
    for _ in range(200):
        add_query(session, large)
    for _ in range(5):
        add_query(session, small)

    window = choose_window(session, DeficitRoundRobin(), Settings(), NOW)

    assert sum(query.tenant_id == "tenant_small" for query in window) == 5


def test_the_output_of_a_batch_can_be_read_before_its_end(session: Session, tenant: Tenant) -> None:
    """vllm PR#52505: nothing is written until the end, so that an interrupted run loses everything."""
    batch = add_batch(session, tenant)
    answer(session, batch, "21", "21", correct=True)
    add_query(session, batch)

    [line] = b"".join(output_chunks(session, batch, "output")).splitlines()

    assert json.loads(line)["response"]["status_code"] == 200


def test_one_line_that_cannot_be_answered_fails_alone(session: Session, tenant: Tenant) -> None:
    """ray PR#59212: one bad row kills the batch."""
    batch = add_batch(session, tenant)
    answer(session, batch, "21", "21", correct=True)
    error = json.dumps({"code": "invalid_request", "message": "Line 2 has no messages."})
    add_query(session, batch, state=QueryState.FAILED, error_json=error, finished_at=NOW)

    finalize(session, batch, NOW)

    counts = batch_object(session, batch)["request_counts"]
    assert counts == {"total": 2, "completed": 1, "failed": 1}
    assert b"Line 2 has no messages." in b"".join(output_chunks(session, batch, "error"))


def test_a_query_has_a_limit_of_its_own_and_ends_under_it(sessions: sessionmaker[Session]) -> None:
    """UKGovernmentBEIS/inspect_ai#1152: a limit per sample, which refuses to start where a price is missing."""
    query_id = query_of(sessions, limit_nanousd=100)

    drive(sessions, query_id, ScriptedEngine())

    query = row(sessions, query_id)
    assert query.state in {QueryState.BUDGET_STOPPED, QueryState.ANSWERED}
    assert query.spent_nanousd <= 100


def test_a_budget_stop_is_an_outcome_of_its_own_and_no_failure(sessions: sessionmaker[Session]) -> None:
    """slothflowlabs/duckle#258: a budget that reports overspend is an invoice, and a budget stop is not a failure."""
    query_id = query_of(sessions, limit_nanousd=1)

    drive(sessions, query_id, ScriptedEngine())

    query = row(sessions, query_id)
    assert (query.state, query.because) == (QueryState.BUDGET_STOPPED, "query limit reached")
    assert query.spent_nanousd == 0
    assert query.error_json is None


def test_a_parked_query_says_which_cap_it_waits_for_and_goes_on_when_that_is_raised(
    sessions: sessionmaker[Session],
) -> None:
    """Story-Forge#49: pause with a clear reason, and resume after a budget increase."""
    query_id = query_of(sessions)
    with sessions.begin() as session:
        tenant = session.get_one(Tenant, "tenant_acme")
        cap_id = set_cap(session, tenant, limit_nanousd=1, period=Period.DAY, now=NOW).id
    drive(sessions, query_id, ScriptedEngine())
    assert row(sessions, query_id).parked_because == f"cap {cap_id} (day)"

    with sessions.begin() as session:
        set_cap(session, session.get_one(Tenant, "tenant_acme"), limit_nanousd=10**6, period=Period.DAY, now=NOW)
        recovery.resume_parked(session, NOW, limit=10)

    with sessions() as session:
        assert session.get_one(QueryRow, query_id).state == QueryState.QUEUED
        assert session.scalars(select(Batch.spent_nanousd)).one() == 0
