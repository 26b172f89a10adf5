"""Prices and amounts are exact: no nano-dollar appears or vanishes between a price list and an entry."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.pricing import Price, format_usd, nanousd_per_token, parse_usd
from scheduler.errors import InvalidRequest
from scheduler.types import Usage

PRICE = Price(id=1, model="small", prompt_nanousd=50, cached_nanousd=5, completion_nanousd=200)
counts = st.integers(min_value=0, max_value=10**7)


def test_a_usage_costs_each_kind_of_token_at_its_own_price() -> None:
    usage = Usage(prompt=100, completion=10)

    cost = PRICE.cost_nanousd(usage)

    assert cost == 100 * 50 + 10 * 200


def test_cached_tokens_are_part_of_the_prompt_and_billed_at_the_cached_price() -> None:
    usage = Usage(prompt=100, cached=80, completion=10)

    cost = PRICE.cost_nanousd(usage)

    assert cost == 20 * 50 + 80 * 5 + 10 * 200


def test_a_server_that_reports_more_cached_than_prompt_tokens_makes_no_negative_cost() -> None:
    usage = Usage(prompt=10, cached=80)

    cost = PRICE.cost_nanousd(usage)

    assert cost == 10 * 5


def test_reasoning_tokens_are_not_billed_twice() -> None:
    usage = Usage(completion=10, reasoning=8)

    cost = PRICE.cost_nanousd(usage)

    assert cost == 10 * 200


def test_a_wave_of_nothing_still_pays_for_its_prompt() -> None:
    most = PRICE.most_nanousd(100, 0, 0)

    assert most == 100 * 50


@given(prompt=counts, cached=counts, n=st.integers(0, 256), tokens_max=counts, data=st.data())
def test_no_wave_costs_more_than_was_held_for_it(
    prompt: int, cached: int, n: int, tokens_max: int, data: st.DataObject
) -> None:
    usage = Usage(prompt=prompt, cached=cached, completion=data.draw(st.integers(0, n * tokens_max)))

    cost = PRICE.cost_nanousd(usage)

    assert 0 <= cost <= PRICE.most_nanousd(prompt, n, tokens_max)


def test_a_dear_cached_price_is_held_too() -> None:
    odd = Price(id=1, model="odd", prompt_nanousd=1, cached_nanousd=9, completion_nanousd=0)

    most = odd.most_nanousd(10, 1, 1)

    assert most == odd.cost_nanousd(Usage(prompt=10, cached=10))


@pytest.mark.parametrize(
    ("usd_per_mtok", "nanousd"),
    [
        ("0.05", 50),
        ("0.001", 1),
        ("0", 0),
        ("15", 15_000),
        ("2.50", 2_500),
        ("1e-3", 1),
        (Decimal("0.2"), 200),
        (3, 3_000),
    ],
)
def test_a_price_per_million_tokens_is_nano_dollars_per_token(usd_per_mtok: str | Decimal | int, nanousd: int) -> None:
    price = nanousd_per_token(usd_per_mtok)

    assert price == nanousd


def test_a_price_between_two_nano_dollars_is_refused_and_the_nearest_two_are_named() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        nanousd_per_token("0.0375")

    assert refusal.value.attributes == {"lower": "0.037", "upper": "0.038"}
    assert "0.037 and 0.038" in refusal.value.message


@pytest.mark.parametrize(
    "price",
    ["-1", "-0.001", "NaN", "sNaN", "Infinity", "1e400", "1e-400", "1000001", "", "free", "1_0", "１", "0" * 99],
)
def test_a_price_that_makes_no_sense_is_refused(price: str) -> None:
    with pytest.raises(InvalidRequest):
        nanousd_per_token(price)


@pytest.mark.parametrize(
    ("text", "nanousd"), [("5", 5 * 10**9), ("0.01", 10**7), (" 0.000000001 ", 1), ("1e3", 10**12), (2, 2 * 10**9)]
)
def test_an_amount_in_dollars_is_read_exactly(text: str | int, nanousd: int) -> None:
    amount = parse_usd(text)

    assert amount == nanousd


@pytest.mark.parametrize(
    ("amount", "complaint"),
    [
        ("0", "more than 0"),
        ("-3", "more than 0"),
        ("0.0000000001", "9 decimals"),
        ("1000000001", "above"),
        ("1e400", "out of range"),
        ("1e999999999", "out of range"),
        ("nan", "no number"),
        ("-inf", "no number"),
        ("ten", "no number"),
        ("$5", "no number"),
    ],
)
def test_an_amount_that_cannot_be_a_cap_is_refused_with_its_reason(amount: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        parse_usd(amount)


@pytest.mark.parametrize(
    ("nanousd", "shown"),
    [
        (0, "0.00 USD"),
        (10_000_000, "0.01 USD"),
        (1_234_500_000_000, "1234.50 USD"),
        (123_000, "0.000123 USD"),
        (123, "0.000000123 USD"),
        (-1_500_000_000, "-1.50 USD"),
    ],
)
def test_an_amount_is_shown_with_as_few_decimals_as_tell_it_whole(nanousd: int, shown: str) -> None:
    text = format_usd(nanousd)

    assert text == shown


@given(st.integers(min_value=1, max_value=10**18))
def test_what_is_shown_reads_back_to_the_same_nano_dollar(nanousd: int) -> None:
    shown = format_usd(nanousd)

    assert parse_usd(shown.removesuffix(" USD")) == nanousd


@given(st.integers(min_value=0, max_value=10**9))
def test_every_whole_nano_dollar_per_token_has_a_price_per_million(nanousd: int) -> None:
    price = nanousd_per_token(Decimal(nanousd) / 1000)

    assert price == nanousd
