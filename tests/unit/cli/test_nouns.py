"""Tenants, keys, caps and prices from the command line, against the real API."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from models.tables import CapPeriod, WebhookRow, Worker
from scheduler.engines import Distrust, quarantine_all
from scheduler.thresholds import Refusal, note_refusals
from scheduler.wiring import utc_now
from tests.unit.cli.conftest import MODEL, Allotd, Server


def test_a_new_tenant_is_told_its_key_and_listed_without_it(server: Server, allotd: Allotd) -> None:
    created = allotd("tenant", "create", "acme", "--timezone", "Europe/Berlin", "--weight", "2")

    listed = allotd("tenant", "list")
    assert created.code == listed.code == 0
    assert "sk-allotd-" in created.out
    assert "acme" in listed.out
    assert "Europe/Berlin" in listed.out
    assert "sk-allotd-" not in listed.out


def test_a_number_that_is_none_is_refused(server: Server, allotd: Allotd) -> None:
    refused = allotd("tenant", "create", "acme", "--weight", "nan")

    assert refused.code == 2
    assert "write a finite one" in refused.err


def test_a_tenant_of_the_same_name_is_refused_in_one_line(priced: Server, allotd: Allotd) -> None:
    again = allotd("tenant", "create", "acme")

    assert again.code == 1
    assert again.out == ""
    assert again.err == "allotd: There is a tenant 'acme' already; choose another name.\n"


def test_a_disabled_tenants_key_is_refused(priced: Server, allotd: Allotd, monkeypatch: pytest.MonkeyPatch) -> None:
    key = allotd("key", "create", "acme", "--json").json["key"]
    allotd("tenant", "disable", "acme")

    monkeypatch.setenv("ALLOTD_API_KEY", key)
    refused = allotd("batch", "list")

    assert refused.code == 1
    assert refused.err.count("\n") == 1


def test_a_tenants_limits_are_set_listed_and_lifted(priced: Server, allotd: Allotd) -> None:
    done = allotd("tenant", "set", "acme", "--queued-max", "500", "--running-max", "8", "--requests-per-minute", "60")

    changed = allotd("tenant", "set", "acme", "--queued-max", "none", "--weight", "2.5", "--json").json

    assert done.code == 0
    assert "500" in done.out
    assert (changed["queued_max"], changed["running_max"], changed["weight"]) == (None, 8, 2.5)
    assert "60" in allotd("tenant", "list").out


def test_a_limit_that_is_no_number_and_a_change_of_nothing_are_refused_in_one_line(
    priced: Server, allotd: Allotd
) -> None:
    word, nothing = allotd("tenant", "set", "acme", "--running-max", "many"), allotd("tenant", "set", "acme")

    assert word.err == "allotd: --running-max is 'many'; give a whole number, or `none` for no limit.\n"
    assert (nothing.code != 0, nothing.err.count("\n")) == (True, 1)


def test_an_enabled_tenants_key_works_again(priced: Server, allotd: Allotd, monkeypatch: pytest.MonkeyPatch) -> None:
    key = allotd("key", "create", "acme", "--json").json["key"]
    allotd("tenant", "disable", "acme")

    assert allotd("tenant", "enable", "acme").out == "Tenant acme is enabled: its keys work.\n"
    monkeypatch.setenv("ALLOTD_API_KEY", key)
    assert allotd("batch", "list").code == 0


def test_a_key_has_the_scopes_it_was_given_until_it_is_revoked(priced: Server, allotd: Allotd) -> None:
    made = allotd("key", "create", "acme", "--scope", "read", "--json").json

    revoked = allotd("key", "revoke", "acme", made["id"])

    assert made["scopes"] == ["read"]
    assert revoked.out == f"Key {made['id']} of acme is revoked.\n"
    keys = {key["id"]: key for key in allotd("key", "list", "acme", "--json").json}
    assert keys[made["id"]]["revoked_at"] is not None
    assert made["id"] in allotd("key", "list", "acme").out


def test_a_cap_is_set_changed_shown_and_removed(priced: Server, allotd: Allotd) -> None:
    first = allotd("cap", "set", "acme", "5", "--per", "day", "--soft", "0.8", "--json").json

    changed = allotd("cap", "set", "acme", "7.5", "--per", "day", "--json").json

    assert changed["id"] == first["id"]
    assert changed["limit_nanousd"] == 7_500_000_000
    listed = allotd("cap", "list", "acme").out
    assert "7.50" in listed
    assert "day" in listed
    assert allotd("cap", "remove", first["id"]).code == 0
    assert allotd("cap", "list").out == "No caps. Set one with `allotd cap set TENANT USD --per day`.\n"


def test_a_cap_without_any_price_names_the_command_that_sets_one(server: Server, allotd: Allotd) -> None:
    allotd("tenant", "create", "acme")

    refused = allotd("cap", "set", "acme", "5", "--per", "day")

    assert refused.code == 1
    assert "allotd price set" in refused.err


def test_a_cap_that_is_no_amount_is_refused_in_the_servers_words(priced: Server, allotd: Allotd) -> None:
    refused = allotd("cap", "set", "acme", "much", "--per", "day")

    assert refused.code == 1
    assert refused.err == "allotd: The amount 'much' is no number; write it like 0.25.\n"


def test_a_period_that_does_not_exist_is_a_usage_error(priced: Server, allotd: Allotd) -> None:
    refused = allotd("cap", "set", "acme", "5", "--per", "year")

    assert refused.code == 2
    assert "month" in refused.err


def test_every_price_there_was_is_listed_and_the_one_in_force_is_marked(priced: Server, allotd: Allotd) -> None:
    allotd("price", "set", MODEL, "--prompt", "3", "--completion", "4", "--cached", "1")

    prices = allotd("price", "list", "--json").json

    assert [(price["prompt_usd_per_mtok"], price["in_force"]) for price in prices] == [
        ("3.000", True),
        ("1.000", False),
    ]
    assert "3.000" in allotd("price", "list").out


def test_names_that_look_like_markup_are_shown_as_they_are(priced: Server, allotd: Allotd) -> None:
    allotd("price", "set", "[red]model[/red]", "--prompt", "1", "--completion", "1")

    assert "[red]model[/red]" in allotd("price", "list").out


@pytest.mark.parametrize("noun", ["tenant", "cap", "price", "batch", "webhook", "alert", "engine"])
def test_an_empty_list_says_what_to_do_or_is_an_empty_array(server: Server, allotd: Allotd, noun: str) -> None:
    listed = allotd(noun, "list")

    assert listed.code == 0
    assert "allotd" in listed.out
    assert allotd(noun, "list", "--json").json == []


def test_a_soft_limit_stays_when_the_amount_changes_and_goes_when_asked(priced: Server, allotd: Allotd) -> None:
    allotd("cap", "set", "acme", "5", "--per", "day", "--soft", "0.8")

    kept = allotd("cap", "set", "acme", "6", "--per", "day")
    removed = allotd("cap", "set", "acme", "6", "--per", "day", "--no-soft", "--json").json
    both = allotd("cap", "set", "acme", "6", "--per", "day", "--soft", "0.5", "--no-soft")

    assert "80% not crossed" in kept.out
    assert removed["soft"] is None
    assert (both.code, both.err.count("\n")) == (2, 1)


def test_a_cap_shows_when_it_turns_on_its_tenants_clock_and_what_it_left_when_it_first_refused(
    priced: Server, allotd: Allotd
) -> None:
    allotd("tenant", "create", "tokyo", "--timezone", "Asia/Tokyo")
    made = allotd("cap", "set", "tokyo", "5", "--per", "day", "--json").json
    with priced.sessions.begin() as session:
        period = session.scalars(select(CapPeriod).where(CapPeriod.cap_id == made["id"])).one()
        refusal = Refusal(cap_period_id=period.id, left_nanousd=1234, need_nanousd=5000)
        note_refusals(session, [refusal], utc_now())

    listed = allotd("cap", "list", "tokyo").out

    assert "00:00 Asia/Tokyo" in listed
    assert "0.000001234 unspent" in listed
    assert "cap_reached" in allotd("alert", "list").out


def test_a_cap_set_below_what_is_spent_and_held_says_what_may_still_be_spent(priced: Server, allotd: Allotd) -> None:
    made = allotd("cap", "set", "acme", "5", "--per", "day", "--json").json
    with priced.sessions.begin() as session:
        period = session.scalars(select(CapPeriod).where(CapPeriod.cap_id == made["id"])).one()
        period.spent_nanousd, period.held_nanousd = 2_000_000_000, 500_000_000

    lowered = allotd("cap", "set", "acme", "2.25", "--per", "day")

    assert lowered.code == 0
    assert "0.25 USD below what is spent and held" in lowered.out
    assert "may still spend the 0.50 USD" in lowered.out
    assert "below" not in allotd("cap", "set", "acme", "2.5", "--per", "day").out


def test_a_webhook_is_added_with_its_secret_listed_without_and_removed(server: Server, allotd: Allotd) -> None:
    added = allotd("webhook", "add", "https://8.8.8.8/hook", "--kind", "cap_soft")

    listed = allotd("webhook", "list")
    [webhook] = allotd("webhook", "list", "--json").json
    removed = allotd("webhook", "remove", webhook["id"])

    assert "whsec_" in added.out
    assert "cap_soft" in listed.out
    assert "whsec_" not in listed.out
    assert removed.code == 0


def test_a_webhook_to_this_machine_is_refused_in_one_line(server: Server, allotd: Allotd) -> None:
    refused = allotd("webhook", "add", "http://127.0.0.1:8000/")

    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "ALLOTD_WEBHOOKS_PRIVATE" in refused.err


def test_a_test_message_that_does_not_arrive_is_a_failure_that_says_why(server: Server, allotd: Allotd) -> None:
    with server.sessions.begin() as session:
        session.add(WebhookRow(id="webhook_1", url="http://127.0.0.1:1/", secret="whsec_AAAA", created_at=utc_now()))

    failed = allotd("webhook", "test", "webhook_1")

    assert failed.code == 1
    assert "no public address" in failed.err


def test_a_quarantined_engine_is_listed_and_released(server: Server, allotd: Allotd) -> None:
    with server.sessions.begin() as session:
        now = utc_now()
        session.add(Worker(id="w-1", capacity=4, started_at=now, heartbeat_at=now, engine="http://gpu:8000/v1"))
        session.flush()
        quarantine_all(session, [Distrust(worker_id="w-1", because="It made too many tokens.")], now)

    listed = allotd("engine", "list").out
    released = allotd("engine", "release", "w-1")

    assert "quarantined" in listed
    assert "It made too many tokens." in listed
    assert "http://gpu:8000/v1" in listed
    assert released.out == "The engine of worker w-1 gets work again.\n"
    assert allotd("engine", "list", "--json").json[0]["state"] == "working"
