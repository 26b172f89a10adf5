"""Prices have versions: the newest that has begun counts, and none is ever edited."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from scheduler.errors import InvalidRequest
from scheduler.ledger import price_at
from scheduler.prices import list_prices, set_price
from tests.factories import NOW, new_sessions

LATER = NOW + timedelta(hours=1)


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


def test_a_price_holds_from_its_instant_on(session: Session) -> None:
    set_price(session, "small", prompt_nanousd=50, completion_nanousd=200, now=NOW)
    set_price(session, "small", prompt_nanousd=60, completion_nanousd=300, now=LATER)

    before, after = price_at(session, "small", LATER - timedelta(seconds=1)), price_at(session, "small", LATER)

    assert (before.completion_nanousd, after.completion_nanousd) == (200, 300)


def test_cached_tokens_cost_as_much_as_others_where_nothing_is_said(session: Session) -> None:
    row = set_price(session, "small", prompt_nanousd=50, completion_nanousd=200, now=NOW)

    assert row.cached_nanousd == 50


def test_cached_tokens_may_be_free(session: Session) -> None:
    row = set_price(session, "small", prompt_nanousd=50, completion_nanousd=200, cached_nanousd=0, now=NOW)

    assert row.cached_nanousd == 0


def test_the_list_keeps_every_version_and_marks_the_one_in_force(session: Session) -> None:
    for model, now in (("small", NOW), ("large", NOW), ("small", LATER)):
        set_price(session, model, prompt_nanousd=1, completion_nanousd=2, now=now)

    listed = [(row.model, row.effective_at, in_force) for row, in_force in list_prices(session, LATER)]

    assert listed == [("large", NOW, True), ("small", LATER, True), ("small", NOW, False)]


def test_a_price_of_the_future_is_listed_and_not_in_force(session: Session) -> None:
    set_price(session, "small", prompt_nanousd=1, completion_nanousd=2, now=NOW)
    set_price(session, "small", prompt_nanousd=2, completion_nanousd=4, now=LATER)

    listed = [(row.effective_at, in_force) for row, in_force in list_prices(session, NOW)]

    assert listed == [(LATER, False), (NOW, True)]


@pytest.mark.parametrize("model", ["", "  ", "m" * 257])
def test_a_model_without_a_name_has_no_price(session: Session, model: str) -> None:
    with pytest.raises(InvalidRequest):
        set_price(session, model, prompt_nanousd=1, completion_nanousd=2, now=NOW)
