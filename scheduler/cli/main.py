"""The `allotd` command: which commands there are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scheduler.cli import (
    alert,
    batch,
    cap,
    db,
    engine,
    key,
    ledger,
    plan,
    predictor,
    price,
    probe,
    record,
    report,
    serve,
    simulate,
    tenant,
    up,
    webhook,
)
from scheduler.cli.exits import exit_code

app = typer.Typer(
    help="Spend test-time compute where it buys the most, and never more than a tenant's cap.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(serve.api)
app.command()(serve.daemon)
app.command()(serve.worker)
app.add_typer(tenant.app, name="tenant")
app.add_typer(key.app, name="key")
app.add_typer(cap.app, name="cap")
app.add_typer(price.app, name="price")
app.add_typer(ledger.app, name="ledger")
app.add_typer(batch.app, name="batch")
app.add_typer(predictor.app, name="predictor")
app.command()(report.report)
app.command()(record.record)
app.command()(probe.probe)
app.command()(simulate.simulate)
app.command()(plan.plan)
app.add_typer(engine.app, name="engine")
app.add_typer(alert.app, name="alert")
app.add_typer(webhook.app, name="webhook")
app.add_typer(db.app, name="db")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 (slow, and rarely asked)

        typer.echo(f"allotd {version('allotd')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line and exit."""
    sys.exit(exit_code(app))
