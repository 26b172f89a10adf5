"""`allotd report`: what was spent, and what it bought."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from scheduler.cli.cap import print_caps
from scheduler.cli.client import connect
from scheduler.cli.output import AsJson, print_json, print_table, say, usd

OUTCOMES = ("answered", "budget_stopped", "abandoned", "failed", "cancelled", "expired")
FIGURES = (
    "queries",
    *OUTCOMES,
    "labelled",
    "correct",
    "accuracy",
    "samples",
    "samples_per_query",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "discarded_tokens",
    "cost_usd",
    "cost_per_correct_usd",
    "latency_p50_s",
    "latency_p95_s",
    "uniform_cost_usd",
    "saving_ratio",
    "prompt_estimate_error",
)


class By(StrEnum):
    """What the report has one line for each of."""

    TENANT = "tenant"
    MODEL = "model"
    STRATEGY = "strategy"
    TASK = "task"
    DAY = "day"
    BATCH = "batch"


class Format(StrEnum):
    """How the report is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def report(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    by: Annotated[By, typer.Option(help="One line for each of these.")] = By.TENANT,
    since: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="The first day (UTC), or an instant.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="DATE", help="The first day (UTC) or instant after the period.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Only this batch.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show what was spent and what it bought: accuracy, tokens, cost, latency, and what adaptive budgets saved."""
    question = {"tenant": tenant, "by": by.value, "from": since, "to": until, "batch": batch}
    with connect() as api:
        spend = api.get("/v1/spend", **question)
    if as_json or format_ is Format.JSON:
        print_json(spend)
    elif format_ is Format.CSV:
        _write_csv(by, [*spend["groups"], {**spend["total"], "key": "total"}])
    else:
        _print_tables(by, spend)


def _print_tables(by: By, spend: Mapping[str, Any]) -> None:
    groups = spend["groups"]
    if not groups:
        say("Nothing was asked in this period.")
    else:
        lines = [*groups, {**spend["total"], "key": "total"}] if len(groups) > 1 else groups
        _print_outcomes(by, lines)
        say("")
        _print_costs(by, lines)
    if spend["caps"]:
        say("")
        print_caps(spend["caps"])
    say("")
    _print_budgets(spend["budgets"])


def _print_budgets(budgets: Mapping[str, Any]) -> None:
    say(f"Budgets are set by {budgets['predictor_version']}.")
    for price in budgets["prices"]:
        say(f"{price['tenant']}, {price['budget']}: {price['sentence']}")
    if budgets["calibration"]:
        say("")
        kept = [(_percent(one["promised"]), _percent(one["right"]), one["queries"]) for one in budgets["calibration"]]
        print_table(("promised", "came right", "queries"), kept, right="promised  came right  queries", empty="")
    if any(one["queries"] for one in budgets["policies"]):
        say("")
        rows = [
            (one["policy"], one["queries"], _percent(one["accuracy"]), one["cost_usd"]) for one in budgets["policies"]
        ]
        headings = ("budget by", "queries", "accuracy", "USD per query")
        print_table(headings, rows, right="  ".join(headings[1:]), empty="")


def _print_outcomes(by: By, groups: Sequence[Mapping[str, Any]]) -> None:
    seen = [name for name in OUTCOMES if any(group["outcomes"].get(name) for group in groups)]
    headings = (
        by.value,
        "queries",
        *(name.replace("_", " ") for name in seen),
        "labelled",
        "accuracy",
        "samples",
        "per query",
        "p50 s",
        "p95 s",
    )
    rows = [
        (
            group["key"],
            group["queries"],
            *(group["outcomes"].get(name, 0) for name in seen),
            group["labelled"],
            _percent(group["accuracy"]),
            group["samples"],
            _number(group["samples_per_query"]),
            _number(group["latency_p50_s"]),
            _number(group["latency_p95_s"]),
        )
        for group in groups
    ]
    print_table(headings, rows, right="  ".join(headings[1:]), empty="")


def _print_costs(by: By, groups: Sequence[Mapping[str, Any]]) -> None:
    headings = (
        by.value,
        "prompt tokens",
        "completion",
        "reasoning",
        "discarded",
        "cost USD",
        "per correct",
        "largest budget",
        "saving",
        "estimate off by",
    )
    rows = [
        (
            group["key"],
            group["prompt_tokens"],
            group["completion_tokens"],
            group["reasoning_tokens"],
            group["discarded_tokens"],
            usd(group["cost_nanousd"]),
            group["cost_per_correct_usd"],
            usd(group["uniform_cost_nanousd"]),
            None if group["saving_ratio"] is None else f"{group['saving_ratio']:.2f} x",
            _percent(group["prompt_estimate_error"]),
        )
        for group in groups
    ]
    print_table(headings, rows, right="  ".join(headings[1:]), empty="")


def _write_csv(by: By, groups: Sequence[Mapping[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((by.value, *FIGURES))
    for group in groups:
        flat = {**dict.fromkeys(OUTCOMES, 0), **group["outcomes"], **group}
        writer.writerow((group["key"], *(flat[name] for name in FIGURES)))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
