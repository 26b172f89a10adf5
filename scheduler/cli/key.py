"""`allotd key`: the credentials of tenants."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.client import connect, part
from scheduler.cli.output import AsJson, moment, print_table, say, show
from scheduler.cli.tenant import Name

app = typer.Typer(help="The API keys of tenants.", no_args_is_help=True)


@app.command()
def create(
    tenant: Name,
    scope: Annotated[
        list[str] | None, typer.Option(help="submit or read; give it twice for both, which is the default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key, which is shown once."""
    with connect() as api:
        made = api.post(f"/v1/tenants/{part(tenant)}/keys", {"scopes": scope or None})

    def render() -> None:
        say(f"Key {made['id']} of {tenant} may {' and '.join(made['scopes'])}. It is shown this once:")
        say(made["key"])

    show(made, as_json, render)


@app.command("list")
def list_(tenant: Name, as_json: AsJson = False) -> None:
    """List a tenant's keys, by their first characters."""
    with connect() as api:
        keys = api.pages(f"/v1/tenants/{part(tenant)}/keys")
    rows = [
        (k["id"], k["prefix"], " ".join(k["scopes"]), moment(k["created_at"]), moment(k["revoked_at"])) for k in keys
    ]
    headings = ("id", "begins with", "scopes", "created", "revoked")
    show(keys, as_json, lambda: print_table(headings, rows, empty=f"{tenant} has no keys."))


@app.command()
def revoke(
    tenant: Name, key_id: Annotated[str, typer.Argument(help="As `allotd key list` shows it.")], as_json: AsJson = False
) -> None:
    """Refuse a key from now on."""
    with connect() as api:
        gone = api.delete(f"/v1/tenants/{part(tenant)}/keys/{part(key_id)}")
    show(gone, as_json, lambda: say(f"Key {key_id} of {tenant} is revoked."))
