"""`allotd ledger verify` from the command line, through the API and on the database itself."""

from __future__ import annotations

import pytest

from models.tables import Tenant
from tests.unit.cli.conftest import Allotd, Server


def falsify(server: Server) -> None:
    with server.sessions.begin() as session:
        session.query(Tenant).update({Tenant.spent_nanousd: 1})


def test_books_that_balance_are_said_to(priced: Server, allotd: Allotd) -> None:
    done = allotd("ledger", "verify")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("The books balance to the nano-dollar (0 entries in ")


@pytest.mark.parametrize("how", [(), ("--direct",)])
def test_the_first_nano_dollar_that_does_not_add_up_is_shown_and_the_exit_code_is_1(
    priced: Server, allotd: Allotd, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ALLOTD_DATABASE_URL", priced.services.settings.database_url)
    falsify(priced)

    done = allotd("ledger", "verify", *how)

    assert done.code == 1
    heading, row, summary = done.out.splitlines()
    assert heading.split() == ["table", "id", "what", "expected", "found"]
    assert (row.split()[0], row.split()[-2:]) == ("tenants", ["0", "1"])
    assert summary.startswith("1 figures do not add up")


def test_every_audit_is_listed(priced: Server, allotd: Allotd) -> None:
    none_yet = allotd("ledger", "audits")
    allotd("ledger", "verify")
    falsify(priced)
    allotd("ledger", "verify")

    audits = allotd("ledger", "audits", "--json").json

    assert "have not been looked through yet" in none_yet.out
    assert [audit["balanced"] for audit in audits] == [False, True]
    assert "spent nano-dollars is 1" in allotd("ledger", "audits").out
