"""Prices from the command line: those to come, mistaken ones, and those that pay for GPUs."""

from __future__ import annotations

from datetime import timedelta

from models.tables import Tenant, Wave
from scheduler.wiring import utc_now
from tests.factories import add_batch, add_query, fund
from tests.integration.books import buy
from tests.unit.cli.conftest import MODEL, Allotd, Server


def bill(server: Server) -> None:
    """A wave of acme's with 6 fresh and 4 cached prompt tokens and 50 completion tokens."""
    with server.sessions.begin() as session:
        tenant = session.query(Tenant).one()
        buy(session, fund(session, add_query(session, add_batch(session, tenant)), now=utc_now()), 50, now=utc_now())


def test_a_price_to_come_is_listed_as_such(priced: Server, allotd: Allotd) -> None:
    done = allotd("price", "set", MODEL, "--prompt", "2", "--completion", "4", "--from", "2999-01-01")

    listed = allotd("price", "list", "--json").json
    assert done.code == 0, done.err
    assert "from 2999-01-01" in done.out
    assert [price["status"] for price in listed] == ["coming", "in_force"]
    assert "coming" in allotd("price", "list").out


def test_a_price_for_the_past_names_the_command_that_corrects(priced: Server, allotd: Allotd) -> None:
    refused = allotd("price", "set", MODEL, "--prompt", "2", "--completion", "4", "--from", "2001-01-01")

    assert refused.code == 1
    assert "allotd price correct" in refused.err


def test_a_correction_is_tried_then_made_then_has_nothing_left_to_do(priced: Server, allotd: Allotd) -> None:
    bill(priced)
    command = ("price", "correct", MODEL, "--prompt", "1", "--completion", "3", "--from", "2001-01-01")

    tried, made, again = allotd(*command, "--dry-run"), allotd(*command), allotd(*command)

    assert [done.code for done in (tried, made, again)] == [0, 0, 0], made.err
    assert tried.out.splitlines()[1].split() == ["acme", "1", "0.000050", "0.00"]
    assert "dry run" in tried.out
    assert made.out.splitlines()[:2] == tried.out.splitlines()[:2]
    assert "This is booked" in made.out
    assert again.out.startswith("Nothing was billed at another price in that time.")
    assert allotd("ledger", "verify").code == 0


def test_a_price_from_gpu_cost_is_rounded_up_and_says_how_it_came_about(allotd: Allotd) -> None:
    done = allotd("price", "from-gpu", "--usd-per-gpu-hour", "2.50", "--gpus", "2", "--tokens-per-s", "1000")

    # 5 USD / 3600 s / 4000 = 0.3473 USD per million prompt tokens, four times that per million completion tokens.
    assert done.out.splitlines()[0] == "allotd price set MODEL --prompt 0.348 --completion 1.389"
    assert "2 x 2.50 USD per hour / 3600 s / (1000.0 completion tokens/s x 4 + 0.0 prompt tokens/s)" in done.out


def test_a_price_from_gpu_cost_can_be_measured(priced: Server, allotd: Allotd) -> None:
    bill(priced)
    with priced.sessions.begin() as session:
        wave = session.query(Wave).one()
        wave.settled_at = wave.reserved_at + timedelta(seconds=10)

    done = allotd("price", "from-gpu", "--usd-per-gpu-hour", "1", "--model", MODEL)

    # 1 USD / 3600 s / (5 x 4 + 0.6)
    assert done.out.splitlines()[0] == f"allotd price set {MODEL} --prompt 13.485 --completion 53.938"
    assert "measured over 10.0 busy seconds" in done.out


def test_a_price_from_gpu_cost_needs_a_speed(priced: Server, allotd: Allotd) -> None:
    neither = allotd("price", "from-gpu", "--usd-per-gpu-hour", "1")
    unmeasured = allotd("price", "from-gpu", "--usd-per-gpu-hour", "1", "--model", MODEL)
    absurd = allotd("price", "from-gpu", "--usd-per-gpu-hour", "1", "--tokens-per-s", "NaN")

    assert [done.code for done in (neither, unmeasured, absurd)] == [2, 2, 2]
    assert "--tokens-per-s" in unmeasured.err
