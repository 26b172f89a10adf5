"""`allotd engine`: the workers and the engines behind them."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.client import connect, part
from scheduler.cli.output import AsJson, moment, print_table, say, show

app = typer.Typer(help="The workers and the engines behind them.", no_args_is_help=True)


@app.command("list")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Show those too that have stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """List workers: state, engine, last heartbeat, and why one is quarantined."""
    with connect() as api:
        found = api.pages("/v1/engines", all="true" if every else None)
    rows = [
        (
            one["id"],
            one["engine"] or "in the worker",
            one["state"],
            one["running"],
            one["capacity"],
            moment(one["heartbeat_at"]),
            one["quarantined_because"],
        )
        for one in found
    ]
    headings = ("worker", "engine", "state", "running", "capacity", "last heartbeat", "quarantined because")
    empty = "No workers. Start one with `allotd worker`."
    show(found, as_json, lambda: print_table(headings, rows, right="running  capacity", empty=empty))


@app.command()
def release(
    worker: Annotated[str, typer.Argument(help="As `allotd engine list` shows it.")], as_json: AsJson = False
) -> None:
    """Give a quarantined engine work again, through all workers that ask it."""
    with connect() as api:
        released = api.post(f"/v1/engines/{part(worker)}/release")
    show(released, as_json, lambda: say(f"The engine of worker {worker} gets work again."))
