"""`allotd webhook`: where alerts are posted to."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.client import connect, part
from scheduler.cli.output import AsJson, moment, print_table, say, show
from scheduler.errors import SchedulerError
from scheduler.types import AlertKind

app = typer.Typer(help="Where alerts are posted to.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(help="As `allotd webhook list` shows it.")]


class NotDelivered(SchedulerError):
    """The test message did not arrive."""


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="http:// or https://, at a public address.")],
    kind: Annotated[
        list[AlertKind] | None, typer.Option(help="Post this kind of alert; may be given again. All by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Post alerts to a URL, signed as standardwebhooks.com says. The secret is shown once."""
    with connect() as api:
        made = api.post("/v1/webhooks", {"url": url, "kinds": [one.value for one in kind] if kind else None})

    def render() -> None:
        say(f"Webhook {made['id']} gets {_kinds(made['kinds'])} alerts. Its secret is shown this once:")
        say(made["secret"])

    show(made, as_json, render)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List webhooks."""
    with connect() as api:
        webhooks = api.pages("/v1/webhooks")
    rows = [(one["id"], one["url"], _kinds(one["kinds"]), moment(one["created_at"])) for one in webhooks]
    empty = (
        "No webhooks. Alerts are in the daemon's log and in `allotd alert list`; add one with `allotd webhook add URL`."
    )
    show(webhooks, as_json, lambda: print_table(("id", "url", "alerts", "created"), rows, empty=empty))


@app.command()
def remove(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Post nothing more to a webhook."""
    with connect() as api:
        gone = api.delete(f"/v1/webhooks/{part(webhook_id)}")
    show(gone, as_json, lambda: say(f"Webhook {webhook_id} is removed."))


@app.command("test")
def try_(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Post a test message, and say whether it arrived."""
    with connect() as api:
        result = api.post(f"/v1/webhooks/{part(webhook_id)}/test")
    if not result["delivered"] and not as_json:
        raise NotDelivered(f"The test message did not arrive at {webhook_id}. {result['problem']}")
    show(result, as_json, lambda: say(f"A test message arrived at {webhook_id}."))


def _kinds(kinds: list[str] | None) -> str:
    return "all" if kinds is None else ", ".join(kinds)
