"""`allotd tenant`: who may spend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from scheduler.cli.client import connect, part
from scheduler.cli.output import AsJson, moment, print_table, say, show
from scheduler.errors import InvalidRequest

app = typer.Typer(help="Who may spend.", no_args_is_help=True)

LIMIT = "N|none"
Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name or id.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name no other tenant has.")],
    timezone: Annotated[
        str | None, typer.Option(help="Where its days, weeks and months begin; UTC by default.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Its share when tenants wait for each other; 1 by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a tenant and its first API key, which is shown once."""
    with connect() as api:
        made = api.post("/v1/tenants", {"name": name, "timezone": timezone, "weight": weight})

    def render() -> None:
        say(f"Tenant {made['name']} ({made['id']}) is created. Its API key, shown this once:")
        say(made["key"]["key"])

    show(made, as_json, render)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the tenants."""
    with connect() as api:
        tenants = api.pages("/v1/tenants")
    show(tenants, as_json, lambda: _print(tenants))


@app.command("set")
def set_(
    name: Name,
    queued_max: Annotated[str | None, typer.Option(metavar=LIMIT, help="The most queries that may wait.")] = None,
    running_max: Annotated[
        str | None, typer.Option(metavar=LIMIT, help="The most queries that may run at once.")
    ] = None,
    requests_per_minute: Annotated[
        str | None, typer.Option(metavar=LIMIT, help="The most API requests within any minute.")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="Its share when tenants wait for each other.")] = None,
    timezone: Annotated[
        str | None,
        typer.Option(help="Where its days, weeks and months begin; open periods are counted again from its midnight."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a tenant's limits, weight or time zone; `none` lifts a limit."""
    limits = {"queued_max": queued_max, "running_max": running_max, "requests_per_minute": requests_per_minute}
    changes: dict[str, Any] = {key: _limit(key, value) for key, value in limits.items() if value is not None}
    changes |= {key: value for key, value in {"weight": weight, "timezone": timezone}.items() if value is not None}
    if not changes:
        raise InvalidRequest("Nothing is to change; name at least one of the options in `allotd tenant set --help`.")
    with connect() as api:
        tenant = api.change(f"/v1/tenants/{part(name)}", changes)
    show(tenant, as_json, lambda: _print([tenant]))


@app.command()
def disable(name: Name, as_json: AsJson = False) -> None:
    """Refuse a tenant's keys from now on; what it has spent stays on the books."""
    with connect() as api:
        tenant = api.post(f"/v1/tenants/{part(name)}/disable")
    show(tenant, as_json, lambda: say(f"Tenant {name} is disabled: its keys are refused."))


@app.command()
def enable(name: Name, as_json: AsJson = False) -> None:
    """Let a disabled tenant's keys work again, and what it has queued go on."""
    with connect() as api:
        tenant = api.post(f"/v1/tenants/{part(name)}/enable")
    show(tenant, as_json, lambda: say(f"Tenant {name} is enabled: its keys work."))


def _limit(name: str, value: str) -> int | None:
    if value == "none":
        return None
    if not (value.isascii() and value.isdigit()):
        option = name.replace("_", "-")
        raise InvalidRequest(f"--{option} is {value!r}; give a whole number, or `none` for no limit.")
    return int(value)


def _print(tenants: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            t["name"],
            t["id"],
            t["timezone"],
            f"{t['weight']:g}",
            t["queued_max"],
            t["running_max"],
            t["requests_per_minute"],
            moment(t["created_at"]),
            moment(t["disabled_at"]),
        )
        for t in tenants
    ]
    headings = ("name", "id", "timezone", "weight", "queued max", "running max", "per minute", "created", "disabled")
    print_table(headings, rows, right="weight  queued max  running max  per minute", empty=NONE_YET)


NONE_YET = "There is no tenant yet; create one with `allotd tenant create NAME`."
