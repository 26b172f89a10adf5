"""`allotd cap`: how much a tenant may spend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from scheduler.cli.client import connect, part
from scheduler.cli.output import AsJson, moment, print_table, say, show, usd
from scheduler.cli.tenant import Name
from scheduler.errors import InvalidRequest

app = typer.Typer(help="How much a tenant may spend.", no_args_is_help=True)


class Period(StrEnum):
    """When a cap begins anew."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


@app.command("set")
def set_(
    tenant: Name,
    limit_usd: Annotated[str, typer.Argument(metavar="USD", help="The most it may spend per period.")],
    per: Annotated[Period, typer.Option(help="When it begins anew, in the tenant's timezone; total never does.")],
    soft: Annotated[
        float | None,
        typer.Option(help="Alert once a period when this share is spent, as 0.8; stays as it is where left out."),
    ] = None,
    no_soft: Annotated[bool, typer.Option("--no-soft", help="Alert at no share any more.")] = False,
    model: Annotated[str | None, typer.Option(help="Count only what this model costs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set a cap, or change the one there is. Raising it lets parked queries go on by themselves."""
    wanted = {"tenant": tenant, "limit_usd": limit_usd, "period": per.value, "soft": soft, "model": model}
    if no_soft and soft is not None:
        raise InvalidRequest("--soft and --no-soft exclude each other; leave one of them out.")
    with connect() as api:
        cap = api.post("/v1/caps", wanted, cleared=("soft",) if no_soft else ())
    show(cap, as_json, lambda: _print_set(cap))


def _print_set(cap: Mapping[str, Any]) -> None:
    print_caps([cap])
    if cap["left_nanousd"] < 0:
        say(
            f"It is {usd(-cap['left_nanousd'])} USD below what is spent and held. Nothing new starts under it; "
            f"what runs may still spend the {usd(cap['held_nanousd'])} USD that are held for it."
        )


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant's.")] = None, as_json: AsJson = False
) -> None:
    """List caps: spent, held, left, and when the period turns."""
    with connect() as api:
        caps = api.pages("/v1/caps", tenant=tenant)
    show(caps, as_json, lambda: print_caps(caps))


@app.command()
def remove(
    cap_id: Annotated[str, typer.Argument(help="As `allotd cap list` shows it.")], as_json: AsJson = False
) -> None:
    """Remove a cap."""
    with connect() as api:
        gone = api.delete(f"/v1/caps/{part(cap_id)}")
    show(gone, as_json, lambda: say(f"Cap {cap_id} is removed."))


def print_caps(caps: Iterable[Mapping[str, Any]]) -> None:
    """Caps as a table; "unspent" is what a cap still left when it first refused a query in the present period."""
    caps = list(caps)
    rows = [
        (
            cap["tenant_name"],
            cap["period"],
            cap["model"] or "all",
            usd(cap["limit_nanousd"]),
            usd(cap["spent_nanousd"]),
            usd(cap["held_nanousd"]),
            usd(cap["left_nanousd"]),
            _soft(cap),
            _turn(cap),
            _refused(cap),
            cap["id"],
        )
        for cap in caps
    ]
    headings = (
        "tenant",
        "per",
        "model",
        "cap USD",
        "spent",
        "held",
        "left",
        "soft limit",
        "turns at",
        "first refusal",
        "id",
    )
    print_table(
        headings,
        rows,
        right="cap USD  spent  held  left",
        empty="No caps. Set one with `allotd cap set TENANT USD --per day`.",
    )


def _soft(cap: Mapping[str, Any]) -> str | None:
    if cap["soft"] is None:
        return None
    return f"{cap['soft']:.0%} {'crossed' if cap['soft_alerted_at'] is not None else 'not crossed'}"


def _turn(cap: Mapping[str, Any]) -> str | None:
    """When the period turns, on the tenant's clock."""
    if cap["turns_at"] is None:
        return None
    return f"{datetime.fromtimestamp(cap['turns_at'], tz=ZoneInfo(cap['timezone'])):%Y-%m-%d %H:%M} {cap['timezone']}"


def _refused(cap: Mapping[str, Any]) -> str | None:
    if cap["first_refused_at"] is None:
        return None
    return f"{moment(cap['first_refused_at'])}, {usd(cap['phantom_block_nanousd'])} unspent"
