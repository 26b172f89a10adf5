"""`allotd ledger`: whether the books balance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from scheduler.cli.client import connect
from scheduler.cli.output import AsJson, moment, print_table, say, show

app = typer.Typer(help="Whether the books balance.", no_args_is_help=True)


@app.command()
def verify(
    direct: Annotated[
        bool, typer.Option("--direct", help="Read the database at ALLOTD_DATABASE_URL, without any server.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute every balance from the entries and every entry from the samples; exit code 1 where one differs."""
    if direct:
        from scheduler.cli.directly import verdict as directly  # noqa: PLC0415 (loads what knows databases)

        verdict = directly()
    else:
        with connect() as api:
            verdict = api.post("/v1/ledger/verify", timeout=None)
    show(verdict, as_json, lambda: print_verdict(verdict))
    if not verdict["balanced"]:
        raise typer.Exit(1)


@app.command()
def audits(as_json: AsJson = False) -> None:
    """List the recorded audits: the daemon's own and those of `allotd ledger verify`."""
    with connect() as api:
        found = api.pages("/v1/ledger/audits")
    headings = ("began", "entries", "seconds", "discrepancies", "first")
    rows = [
        (moment(one["began_at"]), one["entries"], f"{one['seconds']:.2f}", one["discrepancies"], one["first"])
        for one in found
    ]
    empty = "The books have not been looked through yet; `allotd ledger verify` does."
    show(found, as_json, lambda: print_table(headings, rows, right="entries  seconds  discrepancies", empty=empty))


def print_verdict(verdict: Mapping[str, Any]) -> None:
    """One sentence where the books balance, else where they do not."""
    looked_at = f"{verdict['entries']} entries in {verdict['seconds']:.2f} s"
    if verdict["balanced"]:
        say(f"The books balance to the nano-dollar ({looked_at}).")
        return
    headings = ("table", "id", "what", "expected", "found")
    rows = [[one[name] for name in headings] for one in verdict["shown"]]
    print_table(headings, rows, right="expected  found", empty="")
    more = verdict["discrepancies"] - len(rows)
    unseen = f"; {more} of them are not shown" if more else ""
    say(f"{verdict['discrepancies']} figures do not add up ({looked_at}){unseen}.")
