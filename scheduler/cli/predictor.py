"""`allotd predictor`: what was learned from the ledger, and which of it plans are made with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from scheduler.cli.client import connect
from scheduler.cli.output import AsJson, moment, print_table, say, show
from scheduler.errors import SchedulerError

app = typer.Typer(help="Train, look at, promote and roll back predictors of difficulty.", no_args_is_help=True)

LOOK_S = 0.5
STATES = {
    "champion": "in use",
    "challenger": "being trained and judged",
    "kept_out": "kept out",
    "retired": "used no more",
}
Version = Annotated[str, typer.Argument(help="The predictor's version, from `allotd predictor history`.")]


class NotTrained(SchedulerError):
    """The daemon has not trained the predictor in time."""

    code = "not_trained"


@app.command()
def train(
    wait: Annotated[bool, typer.Option(help="Wait until it was judged.")] = True,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="How long to wait.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Fit a predictor to the ledger. It is promoted only if it is better on queries it has not seen."""
    deadline = time.monotonic() + timeout
    with connect() as api:
        predictor = api.post("/v1/predictors", {})
        while wait and predictor["state"] == "challenger":
            if time.monotonic() > deadline:
                version = predictor["version"]
                raise NotTrained(
                    f"{version} was not judged in time; look again with `allotd predictor show {version}`."
                )
            time.sleep(LOOK_S)
            predictor = api.get(f"/v1/predictors/{predictor['version']}")
    show(predictor, as_json, lambda: _tell(predictor))


@app.command("show")
def show_(
    version: Annotated[str | None, typer.Argument(help="Its version; the one in use by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a predictor's state, why it has it, and its card."""
    predictor: dict[str, Any] | None
    with connect() as api:
        if version is not None:
            predictor = api.get(f"/v1/predictors/{version}")
        else:
            predictor = next((one for one in api.pages("/v1/predictors") if one["state"] == "champion"), None)
    if predictor is None:
        show(None, as_json, lambda: say("No predictor is in use; plans are made with plain priors."))
    else:
        show(predictor, as_json, lambda: _tell(predictor))


@app.command()
def history(as_json: AsJson = False) -> None:
    """List every predictor there was, newest first."""
    with connect() as api:
        found = api.pages("/v1/predictors")
    headings = ("version", "state", "trained", "promoted", "log loss", "before", "because")
    empty = "No predictor was trained yet; plans are made with plain priors. Train one with `allotd predictor train`."
    show(
        found,
        as_json,
        lambda: print_table(headings, [_row(one) for one in found], right="log loss  before", empty=empty),
    )


@app.command()
def promote(version: Version, as_json: AsJson = False) -> None:
    """Put a predictor in use, whatever it was judged; no restart is needed."""
    with connect() as api:
        predictor = api.post(f"/v1/predictors/{version}/promote", {})
    show(predictor, as_json, lambda: say(f"Plans are made with {version} from now on."))


@app.command()
def rollback(as_json: AsJson = False) -> None:
    """Put in use again what was before the present predictor: an earlier one, or plain priors."""
    with connect() as api:
        rolled = api.post("/v1/predictors/rollback", {})
    what = rolled["version"] if rolled["predictor"] else "plain priors"
    past = ", ".join(rolled["passed_over"])
    passed = f" Passed over, as their files are gone or changed: {past}." if past else ""
    show(rolled, as_json, lambda: say(f"Plans are made with {what} from now on.{passed}"))


def _tell(predictor: Mapping[str, Any]) -> None:
    problem = predictor["unusable_because"]
    state = STATES[predictor["state"]] if not problem else "promoted"
    say(f"{predictor['version']}: {state}, because {predictor['because']}.")
    if problem:
        say(f"It cannot be used, so plans are made with plain priors. {problem}")
    card = predictor["card"]
    if "gain" not in card:
        return
    say(
        f"It learned from {card['train']} queries and was judged on {card['held_out']} others, "
        f"against {card['against']}."
    )
    say(
        f"Log loss per sample {card['log_loss_per_sample']:.3f} (before: {card['log_loss_per_sample_before']:.3f}), "
        f"Brier score {card['brier']:.3f} (before: {card['brier_before']:.3f})."
    )
    rows = [(f"{one['predicted']:.2f}", f"{one['right']:.2f}", one["samples"]) for one in card["reliability"]]
    print_table(("predicted", "right", "samples"), rows, right="predicted  right  samples", empty="")


def _row(predictor: Mapping[str, Any]) -> tuple[object, ...]:
    card = predictor["card"]
    losses = (card.get(f"log_loss_per_sample{which}") for which in ("", "_before"))
    return (
        predictor["version"],
        STATES[predictor["state"]] if not predictor["unusable_because"] else "unusable",
        moment(predictor["created_at"]),
        moment(predictor["promoted_at"]),
        *(None if loss is None else f"{loss:.3f}" for loss in losses),
        predictor["because"],
    )
