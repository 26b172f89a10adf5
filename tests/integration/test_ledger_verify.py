"""`allotd ledger verify` finds every falsification of the books, on both databases, and nothing in honest ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Attempt, Batch, CapPeriod, Entry, PriceRow, QueryRow, SampleRow, Tenant, Wave
from scheduler import audit
from scheduler.audit import discrepancies, verdicts
from scheduler.audit.discrepancies import Check
from scheduler.audit.schedule import auditing, look
from scheduler.processes import wait_until
from scheduler.settings import Settings
from scheduler.states import AttemptState
from scheduler.wiring import Services
from tests.factories import NOW, add_query, fund
from tests.integration.books import books, buy, first, live


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def sessions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sessionmaker[Session]]:
    """Honest books: two tenants, caps of three kinds, waves that are settled, held, expired and corrected."""
    with books(request, tmp_path_factory.mktemp("books")) as made:
        with made.begin() as session:
            live(session)
        yield made


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """A session whose falsifications are undone."""
    with sessions() as session:
        yield session
        session.rollback()


def copied(session: Session, row: Any, **changes: Any) -> None:
    """The row once more, but for what is changed."""
    table = type(row).__table__
    values = {column.key: getattr(row, column.key) for column in table.columns if column.key != "id"}
    session.execute(insert(table).values(**values | changes))


def test_honest_books_balance(session: Session) -> None:
    assert [str(found) for found in discrepancies(session)] == []


Falsify = Callable[[Session], str]
"""Falsifies one thing; returns how what verify must say begins."""


def edited_cost(session: Session) -> str:
    entry = first(session, Entry, Entry.kind == "settle")
    entry.spent_delta_nanousd += 1
    return f"entries {entry.id}: spent"


def edited_hold(session: Session) -> str:
    entry = first(session, Entry, Entry.kind == "reserve")
    entry.held_delta_nanousd -= 1
    return f"entries {entry.id}: held"


def entry_in_another_period(session: Session) -> str:
    entry = first(session, Entry, Entry.kind == "settle")
    entry.effective_at = entry.effective_at.replace(year=2025)
    return f"entries {entry.id}: count of facts"


def entry_of_another_tenant(session: Session) -> str:
    entry = first(session, Entry, Entry.kind == "settle")
    entry.tenant_id = "tenant_other"
    return f"entries {entry.id}: count of facts"


def lost_entry(session: Session) -> str:
    entry = first(session, Entry, Entry.kind == "release")
    session.delete(entry)
    return f"waves {entry.wave_id}: held"


def entry_from_nowhere(session: Session) -> str:
    entry = first(session, Entry, Entry.kind == "settle")
    copied(session, entry, key="settle:from-nowhere", wave_id=None)
    return f"queries {entry.query_id}: spent"


def tenant_balance(session: Session) -> str:
    tenant = first(session, Tenant)
    tenant.spent_nanousd -= 1
    return f"tenants {tenant.id}: spent"


def batch_balance(session: Session) -> str:
    batch = first(session, Batch)
    batch.held_nanousd += 1
    return f"batches {batch.id}: held"


def query_balance(session: Session) -> str:
    query = first(session, QueryRow)
    query.spent_nanousd += 1
    return f"queries {query.id}: spent"


def cap_period_balance(session: Session) -> str:
    period = first(session, CapPeriod)
    period.spent_nanousd -= 1
    return f"cap_periods {period.id}: spent"


def lost_cap_period(session: Session) -> str:
    period = first(session, CapPeriod)
    session.delete(period)
    return f"caps {period.cap_id}: entries in no period"


def lost_sample(session: Session) -> str:
    sample = first(session, SampleRow)
    session.delete(sample)
    return f"waves {sample.wave_id}: completion tokens"


def lost_empty_sample(session: Session) -> str:
    sample = first(session, SampleRow)
    second = first(session, SampleRow, SampleRow.wave_id == sample.wave_id, SampleRow.id != sample.id)
    second.tokens += sample.tokens
    session.delete(sample)
    return f"queries {sample.query_id}: samples drawn"


def shortened_sample(session: Session) -> str:
    sample = first(session, SampleRow)
    sample.tokens -= 1
    return f"waves {sample.wave_id}: completion tokens"


def sample_bought_twice(session: Session) -> str:
    sample = first(session, SampleRow)
    copied(session, sample, position=9)
    return f"waves {sample.wave_id}: completion tokens"


def wave_paid_twice(session: Session) -> str:
    entry = first(session, Entry, Entry.kind == "settle")
    copied(session, entry, key="settle:again")
    return f"waves {entry.wave_id}: cost"


def sample_given_to_another_query(session: Session) -> str:
    sample = first(session, SampleRow)
    sample.query_id = first(session, QueryRow, QueryRow.id != sample.query_id).id
    return f"waves {sample.wave_id}: samples of other queries"


def wrong_price_row(session: Session) -> str:
    price = first(session, PriceRow)
    price.completion_nanousd += 1
    return f"waves {first(session, Wave).id}: cost"


def wrong_price_of_an_entry(session: Session) -> str:
    price = first(session, PriceRow)
    copied(session, price, completion_nanousd=price.completion_nanousd + 1)
    entry = first(session, Entry, Entry.kind == "settle")
    entry.price_id = first(session, PriceRow, PriceRow.id != price.id).id
    return f"entries {entry.id}: spent"


def price_of_another_model(session: Session) -> str:
    price = first(session, PriceRow)
    copied(session, price, model="another")
    wave = first(session, Wave)
    wave.price_id = first(session, PriceRow, PriceRow.model == "another").id
    return f"waves {wave.id}: prices of other models"


def phantom_hold(session: Session) -> str:
    wave = first(session, Wave, Wave.state == "held")
    copied(session, wave)
    return f"waves {first(session, Wave, Wave.state == 'held', Wave.id > wave.id).id}: held"


def hold_that_nobody_will_release(session: Session) -> str:
    wave = first(session, Wave, Wave.state == "held")
    session.execute(update(Attempt).where(Attempt.id == wave.attempt_id).values(state=AttemptState.FINISHED))
    return f"waves {wave.id}: held nano-dollars that nobody will release"


def wave_that_was_never_closed(session: Session) -> str:
    wave = first(session, Wave, Wave.state == "settled")
    wave.state = "held"
    return f"waves {wave.id}: held"


def forgotten_tokens_of_a_query(session: Session) -> str:
    query = first(session, QueryRow)
    query.completion_tokens -= 1
    return f"queries {query.id}: completion tokens"


FALSIFICATIONS = (
    edited_cost,
    edited_hold,
    entry_in_another_period,
    entry_of_another_tenant,
    lost_entry,
    entry_from_nowhere,
    tenant_balance,
    batch_balance,
    query_balance,
    cap_period_balance,
    lost_cap_period,
    lost_sample,
    lost_empty_sample,
    shortened_sample,
    sample_bought_twice,
    wave_paid_twice,
    sample_given_to_another_query,
    wrong_price_row,
    wrong_price_of_an_entry,
    price_of_another_model,
    phantom_hold,
    hold_that_nobody_will_release,
    wave_that_was_never_closed,
    forgotten_tokens_of_a_query,
)


@pytest.mark.parametrize("falsify", FALSIFICATIONS, ids=lambda falsify: falsify.__name__)
def test_a_falsification_is_found(session: Session, falsify: Falsify) -> None:
    expected = falsify(session)
    session.flush()

    found = [str(one) for one in discrepancies(session)]

    assert any(one.startswith(expected) for one in found), (expected, found)


def test_what_others_write_meanwhile_does_not_count(sessions: sessionmaker[Session]) -> None:
    """Half of the checks run before another process buys a wave, half after."""

    def busy() -> Check:
        with sessions.begin() as session:
            buy(session, fund(session, add_query(session, first(session, Batch))), 5)
        return audit.CHECKS[-1]()

    verdict = verdicts.verified(sessions, (*audit.CHECKS[:4], busy, *audit.CHECKS[4:]), lambda: NOW)

    assert verdict.is_balanced, verdict.shown
    with sessions() as session:
        assert list(discrepancies(session)) == []


def test_a_recorded_audit_says_what_was_wrong_and_only_the_newest_are_kept(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = Services(settings=Settings(), sessions=sessions, clock=lambda: NOW)
    monkeypatch.setattr(verdicts, "KEPT", 2)
    with sessions.begin() as session:
        other = session.get_one(Tenant, "tenant_other")
        spent, other.spent_nanousd = other.spent_nanousd, 1

    looked = [look(services) for _ in range(3)]

    with sessions.begin() as session:
        rows = audit.audits(session)
        session.get_one(Tenant, "tenant_other").spent_nanousd = spent
    assert looked == [False, False, False]
    assert len(rows) == 2
    first_found = f"tenants tenant_other: spent nano-dollars is 1, but its parts add up to {spent}"
    assert [row.first for row in rows] == [first_found, first_found]
    assert look(services)


def test_the_daemon_looks_through_the_books_as_it_begins_and_every_so_often(sessions: sessionmaker[Session]) -> None:
    def count() -> int:
        with sessions() as session:
            return len(audit.audits(session))

    services = Services(settings=Settings(verify_every_s=0.05), sessions=sessions, clock=lambda: NOW)
    before = count()

    with auditing(services):
        assert wait_until(lambda: count() >= before + 2, 20)
