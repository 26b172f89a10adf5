"""`allotd price`: what tokens cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scheduler.cli.client import connect
from scheduler.cli.output import AsJson, moment, print_table, say, show

app = typer.Typer(help="What tokens cost, in USD per million.", no_args_is_help=True)

HOW = "allotd price set {model} --prompt USD_PER_MTOK --completion USD_PER_MTOK"


@app.command("set")
def set_(
    model: Annotated[str, typer.Argument(help="The model's name, as it is served.")],
    prompt: Annotated[str, typer.Option(metavar="USD_PER_MTOK", help="Prompt tokens.")],
    completion: Annotated[str, typer.Option(metavar="USD_PER_MTOK", help="Completion tokens.")],
    cached: Annotated[
        str | None,
        typer.Option(metavar="USD_PER_MTOK", help="Prompt tokens read from the cache; as --prompt by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set what a model's tokens cost from now on. What was billed before keeps its price."""
    wanted = {
        "model": model,
        "prompt_usd_per_mtok": prompt,
        "completion_usd_per_mtok": completion,
        "cached_usd_per_mtok": cached,
    }
    with connect() as api:
        price = api.post("/v1/prices", wanted)
    show(
        price,
        as_json,
        lambda: say(
            f"{model} costs {prompt} per million prompt tokens, {completion} per million completion tokens (USD)."
        ),
    )


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List prices."""
    with connect() as api:
        prices = api.pages("/v1/prices")
    headings = ("model", "prompt USD/Mtok", "cached USD/Mtok", "completion USD/Mtok", "since", "in force")
    empty = f"No model has a price, so none answers. Set one with `{HOW.format(model='MODEL')}`."
    right = "prompt USD/Mtok  cached USD/Mtok  completion USD/Mtok"
    show(prices, as_json, lambda: print_table(headings, [_row(p) for p in prices], right=right, empty=empty))


def _row(price: dict[str, Any]) -> tuple[object, ...]:
    kinds = ("prompt", "cached", "completion")
    prices = (price[f"{kind}_usd_per_mtok"] for kind in kinds)
    return (price["model"], *prices, moment(price["effective_at"]), "yes" if price["in_force"] else "no")
