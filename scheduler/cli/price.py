"""`allotd price`: what tokens cost."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

import typer

from scheduler.cli.client import connect
from scheduler.cli.output import AsJson, moment, print_table, say, show, usd
from scheduler.core.pricing import price_from_gpus, usd_per_mtok
from scheduler.errors import InvalidRequest

app = typer.Typer(help="What tokens cost, in USD per million.", no_args_is_help=True)

HOW = "allotd price set {model} --prompt USD_PER_MTOK --completion USD_PER_MTOK"
COMPLETION_WEIGHT = 4
"""Prompt tokens that cost as much as one completion token; hosted models mostly ask between 3 and 5 times as much."""

Model = Annotated[str, typer.Argument(help="The model's name, as it is served.")]
Prompt = Annotated[str, typer.Option(metavar="USD_PER_MTOK", help="Prompt tokens.")]
Completion = Annotated[str, typer.Option(metavar="USD_PER_MTOK", help="Completion tokens.")]
Cached = Annotated[
    str | None,
    typer.Option(metavar="USD_PER_MTOK", help="Prompt tokens read from the cache; as --prompt by default."),
]


@app.command("set")
def set_(
    model: Model,
    prompt: Prompt,
    completion: Completion,
    cached: Cached = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="When it begins: a date (UTC) or an instant to come.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set what a model's tokens cost from now on, or from a date. What was billed before keeps its price."""
    wanted = _wanted(model, prompt, completion, cached) | {"from": from_}
    with connect() as api:
        price = api.post("/v1/prices", wanted)
    since = f" from {moment(price['effective_at'])} on" if from_ else ""
    sentence = (
        f"{model} costs {prompt} per million prompt tokens, {completion} per million completion tokens (USD){since}."
    )
    show(price, as_json, lambda: say(sentence))


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List prices: which is in force, which come, which were corrections of the past."""
    with connect() as api:
        prices = api.pages("/v1/prices")
    headings = ("model", "prompt USD/Mtok", "cached USD/Mtok", "completion USD/Mtok", "since", "until", "status", "id")
    empty = f"No model has a price, so none answers. Set one with `{HOW.format(model='MODEL')}`."
    right = "prompt USD/Mtok  cached USD/Mtok  completion USD/Mtok"
    show(prices, as_json, lambda: print_table(headings, [_row(p) for p in prices], right=right, empty=empty))


@app.command()
def correct(
    model: Model,
    prompt: Prompt,
    completion: Completion,
    from_: Annotated[str, typer.Option("--from", metavar="DATE", help="Since when the price was mistaken (UTC).")],
    to: Annotated[
        str | None, typer.Option(metavar="DATE", help="Until when; without it the price also holds from now on.")
    ] = None,
    cached: Cached = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be charged and given back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a mistaken price right, by entries on top of what was billed. Done twice it is done once."""
    wanted = _wanted(model, prompt, completion, cached) | {"from": from_, "to": to, "dry_run": dry_run}
    with connect() as api:
        done = api.post("/v1/prices/corrections", wanted, timeout=None)
    show(done, as_json, lambda: print_correction(done))


@app.command("from-gpu")
def from_gpu(
    usd_per_gpu_hour: Annotated[str, typer.Option(metavar="USD", help="What one GPU costs per hour.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that serve the model.")] = 1,
    tokens_per_s: Annotated[
        str | None, typer.Option(metavar="N", help="Completion tokens per second of all of them together.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Measure tokens per second from this model's ledger instead.")
    ] = None,
    hours: Annotated[float, typer.Option(help="How far back to measure.")] = 24,
    completion_weight: Annotated[
        int, typer.Option(min=1, help="How many prompt tokens cost as much as one completion token.")
    ] = COMPLETION_WEIGHT,
    as_json: AsJson = False,
) -> None:
    """Say which prices pay for the GPUs, and how they come about. Sets nothing."""
    if (tokens_per_s is None) == (model is None):
        raise InvalidRequest("Give either --tokens-per-s, or --model to measure from its ledger.")
    if model is not None:
        completion, prompt, source = _measured(model, hours)
    else:
        completion, prompt, source = _rate(str(tokens_per_s)), Decimal(0), "as given, prompts left out"
    price = price_from_gpus(
        usd_per_gpu_hour,
        gpus,
        completion_tokens_per_s=completion,
        prompt_tokens_per_s=prompt,
        completion_weight=completion_weight,
    )
    found = {
        "prompt_usd_per_mtok": usd_per_mtok(price.prompt_nanousd),
        "completion_usd_per_mtok": usd_per_mtok(price.completion_nanousd),
        "completion_tokens_per_s": float(completion),
        "prompt_tokens_per_s": float(prompt),
    }
    how = (
        f"{gpus} x {usd_per_gpu_hour} USD per hour / 3600 s / ({completion:.1f} completion tokens/s x "
        f"{completion_weight} + {prompt:.1f} prompt tokens/s) per prompt token ({source}), {completion_weight} times "
        "that per completion token; both rounded up to 0.001 USD per million."
    )
    command = HOW.format(model=model or "MODEL").replace("USD_PER_MTOK", "{}")
    command = command.format(found["prompt_usd_per_mtok"], found["completion_usd_per_mtok"])
    show(found, as_json, lambda: say(f"{command}\n{how}"))


def print_correction(done: Mapping[str, Any]) -> None:
    """Who pays and who gets back how much, and which limits are passed."""
    headings = ("tenant", "waves", "charged USD", "given back USD")
    rows = [
        (one["tenant_name"], one["waves"], usd(one["charged_nanousd"]), usd(one["refunded_nanousd"]))
        for one in done["tenants"]
    ]
    empty = "Nothing was billed at another price in that time."
    print_table(headings, rows, right="waves  charged USD  given back USD", empty=empty)
    for one in done["tenants"]:
        for excess in one["exceeded"]:
            say(
                f"{one['tenant_name']}: {excess['scope']} allows {excess['limit_usd']} USD, and {excess['used_usd']} "
                "are spent and held: no new wave starts under it until it is raised or turns."
            )
    until = f"until {moment(done['to_at'])}" if done["to_at"] is not None else "and from now on"
    what = "Nothing is changed: this was a dry run" if done["dry_run"] else "This is booked"
    say(f"{what}, of {done['model']} from {moment(done['from_at'])} {until}.")


def _wanted(model: str, prompt: str, completion: str, cached: str | None) -> dict[str, Any]:
    return {
        "model": model,
        "prompt_usd_per_mtok": prompt,
        "completion_usd_per_mtok": completion,
        "cached_usd_per_mtok": cached,
    }


def _measured(model: str, hours: float) -> tuple[Decimal, Decimal, str]:
    with connect() as api:
        found = api.get("/v1/prices/throughput", model=model, hours=hours)
    if not found["busy_s"] or not found["completion_tokens"]:
        raise InvalidRequest(
            f"The ledger has no wave of '{model}' from the last {hours:g} hours to measure; give --tokens-per-s."
        )
    busy = Decimal(str(found["busy_s"]))
    rates = (Decimal(found[f"{kind}_tokens"]) / busy for kind in ("completion", "prompt"))
    completion, prompt = rates
    return completion, prompt, f"measured over {found['busy_s']:.1f} busy seconds of the last {hours:g} hours"


def _rate(text: str) -> Decimal:
    try:
        rate = Decimal(text)
    except ArithmeticError:
        rate = Decimal(0)
    if not (rate.is_finite() and 0 < rate < 10**9):
        raise InvalidRequest(f"Tokens per second are a number above 0, not {text!r}.")
    return rate


def _row(price: dict[str, Any]) -> tuple[object, ...]:
    kinds = ("prompt", "cached", "completion")
    prices = (price[f"{kind}_usd_per_mtok"] for kind in kinds)
    until = None if price["ends_at"] is None else moment(price["ends_at"])
    return (
        price["model"],
        *prices,
        moment(price["effective_at"]),
        until,
        price["status"].replace("_", " "),
        price["id"],
    )
