"""`allotd tenant`: who may spend."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.client import connect, part
from scheduler.cli.output import AsJson, moment, print_table, say, show

app = typer.Typer(help="Who may spend.", no_args_is_help=True)

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
    rows = [
        (t["name"], t["id"], t["timezone"], f"{t['weight']:g}", moment(t["created_at"]), moment(t["disabled_at"]))
        for t in tenants
    ]
    headings = ("name", "id", "timezone", "weight", "created", "disabled")
    show(tenants, as_json, lambda: print_table(headings, rows, right="weight", empty=NONE_YET))


@app.command()
def disable(name: Name, as_json: AsJson = False) -> None:
    """Refuse a tenant's keys from now on; what it has spent stays on the books."""
    with connect() as api:
        tenant = api.post(f"/v1/tenants/{part(name)}/disable")
    show(tenant, as_json, lambda: say(f"Tenant {name} is disabled: its keys are refused."))


NONE_YET = "There is no tenant yet; create one with `allotd tenant create NAME`."
