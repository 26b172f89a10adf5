"""`allotd alert`: what people were told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from scheduler.cli.client import connect
from scheduler.cli.output import AsJson, moment, print_table, show
from scheduler.types import AlertKind

app = typer.Typer(help="What people were told.", no_args_is_help=True)


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only about this tenant.")] = None,
    kind: Annotated[AlertKind | None, typer.Option(help="Only of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List alerts, newest first, and how far each has got to the webhooks."""
    with connect() as api:
        found = api.pages("/v1/alerts", limit, tenant=tenant, kind=kind.value if kind else None)
    rows = [(moment(one["created_at"]), one["kind"], one["message"], _delivered(one)) for one in found]
    show(found, as_json, lambda: print_table(("at", "kind", "what", "webhooks"), rows, empty="No alerts from allotd."))


def _delivered(alert: Mapping[str, Any]) -> str | None:
    """How many webhooks have it, wait for it, or were given up, and why the last of these were."""
    deliveries = alert["deliveries"]
    if not deliveries:
        return None
    states = Counter(one["state"] for one in deliveries)
    problems = {one["problem"] for one in deliveries if one["state"] != "delivered" and one["problem"]}
    return " ".join([", ".join(f"{count} {state}" for state, count in sorted(states.items())), *sorted(problems)])
