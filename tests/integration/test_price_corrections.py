"""A mistaken price is put right by entries on top: exactly, once, for everybody, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch, CapPeriod, Entry, PriceRow, QueryRow, Tenant, Wave
from scheduler import caps, ledger
from scheduler.audit import discrepancies
from scheduler.core.periods import Period
from scheduler.corrections import CorrectionReport, NewPrice, correct_price
from scheduler.errors import CapReached, InvalidRequest, ModelUnpriced
from scheduler.ledger import Funded, Settlement, WaveRequest, price_at
from scheduler.prices import list_prices, set_price
from scheduler.reports import By, Scope, spend_report
from scheduler.throughput import recent_throughput
from scheduler.types import Sample, Usage
from tests.factories import MODEL, NOW, add_batch, add_query, add_tenant, fund
from tests.integration.books import PROMPT, books, buy, first, hold, live

# Prompt tokens cost 1 nano-dollar, completion tokens 2 (tests.factories). `live` bills 90 completion tokens of each of
# three attempts in two waves with 10 prompt tokens each, and 7 of a fourth wave that died.
BEGINNING = NOW - timedelta(hours=1)
LATER = NOW + timedelta(hours=1)
OLD = NewPrice(prompt_nanousd=1, cached_nanousd=1, completion_nanousd=2)
DOUBLE = NewPrice(prompt_nanousd=2, cached_nanousd=2, completion_nanousd=4)
DEARER = NewPrice(prompt_nanousd=1, cached_nanousd=1, completion_nanousd=5)
FREE = NewPrice(prompt_nanousd=0, cached_nanousd=0, completion_nanousd=0)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def sessions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sessionmaker[Session]]:
    with books(request, tmp_path_factory.mktemp("books")) as made:
        yield made


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """A session whose doings are undone; whatever it did, the books balance."""
    with sessions() as session:
        yield session
        assert [str(found) for found in discrepancies(session)] == []
        session.rollback()


@pytest.fixture
def attempts(session: Session) -> list[Funded]:
    return live(session)


def correct(
    session: Session,
    price: NewPrice = DEARER,
    from_at: datetime = BEGINNING,
    to_at: datetime | None = None,
    **more: bool,
) -> CorrectionReport:
    return correct_price(session, MODEL, price, from_at=from_at, to_at=to_at, now=NOW, **more)


def spent(session: Session) -> dict[str, int]:
    session.expire_all()
    return {tenant.id: tenant.spent_nanousd for tenant in session.scalars(select(Tenant).order_by(Tenant.id))}


def moved(report: CorrectionReport) -> dict[str, tuple[int, int, int]]:
    return {
        one.tenant_id: (one.adjusted.waves, one.adjusted.charged_nanousd, one.adjusted.refunded_nanousd)
        for one in report.tenants
    }


def test_an_upward_correction_charges_each_tenant_the_difference(session: Session, attempts: list[Funded]) -> None:
    before = spent(session)

    report = correct(session)

    assert moved(report) == {"tenant_acme": (5, 3 * (90 + 90 + 7), 0), "tenant_other": (2, 3 * 90, 0)}
    assert spent(session) == {"tenant_acme": before["tenant_acme"] + 561, "tenant_other": before["tenant_other"] + 270}
    adjusted = session.scalars(select(Entry).where(Entry.kind == "adjust")).all()
    assert {entry.price_id for entry in adjusted} == {report.price_id}
    assert sum(entry.spent_delta_nanousd for entry in adjusted) == 561 + 270


def test_every_purse_and_period_and_report_has_the_corrected_spend(session: Session, attempts: list[Funded]) -> None:
    correct(session, DOUBLE)

    costs = 2 * (20 + 180) + PROMPT + 14  # what two attempts and the dead wave cost before
    session.expire_all()
    query = session.get_one(QueryRow, attempts[0].query_id)
    batch = session.get_one(Batch, attempts[0].batch_id)
    periods = [period.spent_nanousd for period in session.scalars(select(CapPeriod))]
    group = spend_report(session, Scope(tenant_id="tenant_acme"), By.TENANT, NOW).total
    assert query.spent_nanousd == 2 * (20 + 180)
    assert {batch.spent_nanousd, group.cost_nanousd, *periods} == {2 * costs}


def test_a_downward_correction_gives_back(session: Session, attempts: list[Funded]) -> None:
    before = spent(session)

    report = correct(session, FREE)

    assert moved(report)["tenant_other"] == (2, 0, before["tenant_other"])
    assert spent(session) == {"tenant_acme": 0, "tenant_other": 0}


def test_a_correction_made_twice_is_made_once(session: Session, attempts: list[Funded]) -> None:
    once = correct(session)
    after = spent(session)

    again = correct(session)

    assert again.tenants == ()
    assert again.price_id == once.price_id
    assert spent(session) == after


def test_a_correction_can_be_corrected_and_taken_back(session: Session, attempts: list[Funded]) -> None:
    before = spent(session)

    for price in (FREE, DOUBLE, OLD):
        correct(session, price)

    assert spent(session) == before


def test_a_dry_run_says_the_same_and_changes_nothing(session: Session, attempts: list[Funded]) -> None:
    before, rows = spent(session), session.scalar(select(func.count()).select_from(PriceRow))

    tried = correct(session, is_dry_run=True)

    assert (spent(session), session.scalar(select(func.count()).select_from(PriceRow))) == (before, rows)
    assert session.scalar(select(func.count()).where(Entry.kind == "adjust")) == 0
    assert tried.price_id is None
    assert moved(tried) == moved(correct(session))


def test_what_is_held_is_settled_at_the_corrected_price_whatever_the_worker_was_told(
    session: Session, attempts: list[Funded]
) -> None:
    wave_id = hold(session, attempts[2])
    report = correct(session)
    before = spent(session)["tenant_other"]

    usage = Usage(prompt=PROMPT, completion=40)
    samples = (Sample(text="x", tokens=40),)
    settlement = Settlement(funded=attempts[2], wave_id=wave_id, usage=usage, latency_s=0.1, samples=samples)
    ledger.settle(session, settlement, NOW)

    assert spent(session)["tenant_other"] == before + PROMPT + 40 * 5
    settled = first(session, Entry, Entry.wave_id == wave_id, Entry.kind == "settle")
    assert settled.price_id == report.price_id


def test_a_worker_that_was_told_the_mistaken_price_holds_by_the_corrected_one(
    session: Session, attempts: list[Funded]
) -> None:
    report = correct(session)

    wave = session.get_one(Wave, hold(session, attempts[2]))

    assert (wave.price_id, wave.held_nanousd) == (report.price_id, PROMPT + 2 * 50 * 5)


def test_a_cap_that_an_upward_correction_passes_is_named_and_starts_no_wave(
    session: Session, attempts: list[Funded]
) -> None:
    tenant = session.get_one(Tenant, "tenant_other")
    cap = caps.set_cap(session, tenant, limit_nanousd=spent(session)["tenant_other"], period=Period.MONTH, now=NOW)

    report = correct(session)

    [other] = [one for one in report.tenants if one.tenant_id == "tenant_other"]
    [excess] = other.exceeded
    assert excess.scope.startswith(f"cap {cap.id} (month) from 2026-03-01")
    assert excess.used_nanousd == cap.limit_nanousd + 270
    with pytest.raises(CapReached):
        hold(session, attempts[2])


def test_a_correction_of_the_past_ends_where_it_is_told_to(session: Session) -> None:
    tenant = add_tenant(session)
    funded = fund(session, add_query(session, add_batch(session, tenant)))
    old = buy(session, funded, 30)
    earlier = NOW - timedelta(days=3)
    session.execute(update(Wave).where(Wave.id == old).values(reserved_at=earlier))
    session.execute(update(Entry).where(Entry.wave_id == old).values(effective_at=earlier))
    buy(session, funded, 30)
    in_force = price_at(session, MODEL, NOW)

    report = correct(session, from_at=earlier, to_at=NOW - timedelta(days=2))

    assert moved(report) == {"tenant_acme": (1, 90, 0)}
    assert price_at(session, MODEL, NOW) == in_force
    listed = {row.id: is_current for row, is_current in list_prices(session, NOW)}
    assert report.price_id is not None
    assert (listed[report.price_id], listed[in_force.id]) == (False, True)


def test_without_an_end_the_corrected_price_holds_until_a_newer_one_begins(
    session: Session, attempts: list[Funded]
) -> None:
    coming = set_price(session, MODEL, prompt_nanousd=9, completion_nanousd=9, from_at=LATER, now=NOW)

    report = correct(session)

    assert report.to_at == LATER
    assert price_at(session, MODEL, NOW).id == report.price_id
    assert price_at(session, MODEL, LATER).id == coming.id
    wave = WaveRequest(funded=attempts[2], samples=1, tokens_max=5, tokens_floor=5, prompt_tokens=1)
    held = ledger.reserve(session, wave, LATER)
    assert session.get_one(Wave, held.wave_id).price_id == coming.id


def test_an_edited_correction_is_found(session: Session, attempts: list[Funded]) -> None:
    correct(session)
    entry = first(session, Entry, Entry.kind == "adjust")
    entry_id = entry.id

    with session.begin_nested() as falsified:
        entry.spent_delta_nanousd += 1
        session.flush()
        found = [str(one) for one in discrepancies(session)]
        falsified.rollback()

    assert any(one.startswith(f"entries {entry_id}: corrected cost") for one in found)


@pytest.mark.parametrize(
    ("from_at", "to_at", "says"),
    [
        (LATER, None, "allotd price set"),
        (BEGINNING, BEGINNING, "ends after it begins"),
        (BEGINNING, LATER, "not in the future"),
    ],
)
def test_a_correction_of_no_time_that_is_past_is_refused(
    session: Session, attempts: list[Funded], from_at: datetime, to_at: datetime | None, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        correct(session, from_at=from_at, to_at=to_at)


def test_a_model_that_never_had_a_price_has_none_to_correct(session: Session) -> None:
    with pytest.raises(ModelUnpriced):
        correct_price(session, "unknown", FREE, from_at=BEGINNING, now=NOW)


def test_a_price_cannot_be_set_for_the_past(session: Session) -> None:
    with pytest.raises(InvalidRequest, match="allotd price correct"):
        set_price(session, MODEL, prompt_nanousd=1, completion_nanousd=1, from_at=BEGINNING, now=NOW)


def test_throughput_counts_the_seconds_in_which_some_wave_ran_once(session: Session, attempts: list[Funded]) -> None:
    session.execute(update(Wave).where(Wave.state == "settled").values(settled_at=NOW + timedelta(seconds=20)))

    found = recent_throughput(session, MODEL, 24, NOW)

    assert (found.busy_s, found.prompt_tokens, found.completion_tokens) == (20, 6 * (PROMPT - 4), 3 * 90)
