"""`allotd plan`: what a file would reach for different amounts of money."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from scheduler.cli.batch import TenantOption, readable
from scheduler.cli.client import connect
from scheduler.cli.output import AsJson, print_table, say, show


def plan(
    file: Annotated[Path, typer.Argument(help="JSON lines, as `allotd batch submit` takes them; - reads stdin.")],
    what_if: Annotated[str, typer.Option(metavar="USD,...", help="The amounts, as 5,10,20.")],
    tenant: TenantOption = None,
    strategy: Annotated[str | None, typer.Option(help="How lines are answered that do not say it themselves.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a batch would reach for each amount of money, spent where it helps most. Nothing is kept or changed."""
    with readable(file) as lines, connect(tenant=tenant) as api, lines.open("rb") as content:
        kind = "application/jsonl"
        dry = api.send("/v1/batches/dry-run", content, kind, strategy=strategy, what_if_usd=what_if)
    show(dry, as_json, lambda: _print_reaches(dry))


def _print_reaches(dry: Mapping[str, Any]) -> None:
    rows = [
        (reach["budget_usd"], f"{reach['right']:.1f}", reach["used_usd"], reach["abandoned"], reach["price"])
        for reach in dry["reaches"]
    ]
    headings = ("USD", "right answers", "of it used", "left out", "what more would buy")
    print_table(headings, rows, empty="No amount was asked for.", right="USD  right answers  of it used  left out")
    say(f"\n{dry['runnable']} of {dry['lines']} lines can run. Expected values; nothing was changed.")
