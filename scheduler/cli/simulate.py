"""`allotd simulate`: what policies would have spent and reached on recorded samples."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.output import AsJson, complain, print_json, print_table, say
from scheduler.errors import InvalidRequest

if TYPE_CHECKING:
    from scheduler.simulation.frontiers import Point
    from scheduler.simulation.pools import PoolLine
    from scheduler.simulation.simulate import Simulation

DRAWS = 20
"""Random orders of each query's samples: the spread over queries is then much wider than that over orders."""


class ModeName(StrEnum):
    """What tells a right answer."""

    VERIFIER = "verifier"
    VOTE = "vote"


def simulate(
    test: Annotated[list[Path], typer.Option(metavar="POOL", help="Replay these; several are one mixed workload.")],
    train: Annotated[list[Path] | None, typer.Option(metavar="POOL", help="Learn from these.")] = None,
    mode: Annotated[ModeName, typer.Option(help="What tells a right answer.")] = ModeName.VERIFIER,
    policies: Annotated[list[str] | None, typer.Option(metavar="NAME,...", help="Only these; all by default.")] = None,
    budgets: Annotated[
        list[str] | None, typer.Option(metavar="N,...", help="In samples per query; a whole frontier by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, the splits and the intervals.")] = 0,
    draws: Annotated[int, typer.Option(min=1, max=10_000, help="Random orders of the samples.")] = DRAWS,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.svg", help="Draw the frontiers; as .png or .pdf, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay policies on recorded pools: accuracy and cost, and how much less than others they spend for the same."""
    from scheduler.core.policies.base import Mode  # noqa: PLC0415 (slow to import)
    from scheduler.simulation.pools import read_pools  # noqa: PLC0415
    from scheduler.simulation.simulate import simulate as run  # noqa: PLC0415

    if plot is not None and (plot.is_dir() or not plot.absolute().parent.is_dir()):
        raise InvalidRequest(f"No plot can be written to {plot}: name a file, in a folder that is there.")
    taught, replayed = read_pools(train) if train else [], read_pools(test)
    asked = _parts(policies)
    found = run(
        taught,
        replayed,
        mode=Mode(mode.value),
        policies=asked,
        budgets=_numbers(_parts(budgets)),
        draws=draws,
        seed=seed,
    )
    _mention_unused(taught, replayed, found, policies=asked, budgets=budgets)
    if plot is not None:
        from scheduler.simulation.plots import plot as draw  # noqa: PLC0415

        draw(found, plot)
    if as_json:
        print_json(found.as_json())
    else:
        print_simulation(found)


def _mention_unused(
    taught: Sequence[PoolLine],
    replayed: Sequence[PoolLine],
    found: Simulation,
    *,
    policies: Sequence[str] | None,
    budgets: Sequence[str] | None,
) -> None:
    """Say what was given and does not count, or not as one may think."""
    from scheduler.core.policies.base import Mode  # noqa: PLC0415 (slow to import)
    from scheduler.simulation.simulate import Kind, kind_of  # noqa: PLC0415

    lines = [line.probe is None for line in (*taught, *replayed)]
    if 0 < (without := sum(lines)) < len(lines):
        complain(f"{without} of {len(lines)} lines have no probe, so none is read; `allotd probe POOL` adds them.")
    if found.mode is Mode.VOTE and (mute := sum(_is_mute(line) for line in replayed)):
        complain(f"{mute} of {len(replayed)} lines have no recorded answers, so no vote on them is right.")
    if missing := [name for name in policies or () if name not in found.frontiers]:
        complain(f"There is no setting of {', '.join(missing)} at these budgets, which are no whole samples.")
    if not budgets:
        return
    if (kind := kind_of(replayed)) is not Kind.SAMPLES:
        complain(f"Budgets are numbers of samples; pools of {kind} have settings of their own, which are replayed.")
    elif own := [name for name, curve in found.frontiers.items() if _has_own_settings(curve, budgets)]:
        complain(f"These have settings of their own instead of budgets: {', '.join(own)}.")
    if not taught and (priced := [name for name in ("allotd", "damani") if name in found.frontiers]):
        complain(f"Without --train plain priors set the budgets of {' and '.join(priced)}, and may miss them by far.")


def _is_mute(line: PoolLine) -> bool:
    return all(sample.answer is None for sample in line.samples)


def _has_own_settings(curve: Sequence[Point], budgets: Sequence[str]) -> bool:
    asked = {f"{budget:g}" for budget in _numbers(_parts(budgets)) or ()}
    return any(point.label not in asked for point in curve)


def print_simulation(found: Simulation) -> None:
    """The frontiers and the ratios as tables."""
    say(f"{found.queries} queries, {found.mode} mode")
    for name, curve in found.frontiers.items():
        say("")
        rows = [
            (p.label, f"{p.tokens_per_query:.1f}", _usd(p.usd_per_query), f"{p.accuracy:.3f}", _range(p.ci95))
            for p in curve
        ]
        print_table((name, "tokens", "USD", "accuracy", "95 % interval"), rows, right="tokens  USD  accuracy", empty="")
    for baseline in dict.fromkeys(baseline for ours in found.versus.values() for baseline in ours):
        say("")
        _print_versus(found, baseline)
    shares: list[tuple[str, str]] = [
        (n, f"{share:.0%}") for n, share in found.oracle_share.items() if share is not None
    ]
    if shares:
        say("")
        print_table(("n", "of the oracle's gain over uniform"), shares, empty="")


def _print_versus(found: Simulation, baseline: str) -> None:
    shown = {name: ratios[baseline] for name, ratios in found.versus.items() if baseline in ratios}
    settings = list(dict.fromkeys(n for ratios in shown.values() for n in ratios))
    rows = [
        (name, *(_ratio(ratios.get(n), found.versus_ci95[name][baseline].get(n)) for n in settings))
        for name, ratios in shown.items()
        if name != baseline
    ]
    headings = (f"x less {'USD' if found.by_usd else 'tokens'} than {baseline}", *(f"@{n}" for n in settings))
    print_table(headings, rows, empty="")


def _ratio(ratio: float | None, interval: Sequence[float] | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if interval is None else f"{ratio:.2f} ({interval[0]:.2f}-{interval[1]:.2f})"


def _usd(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.6f}"


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}"


def _parts(texts: Sequence[str] | None) -> list[str] | None:
    """What stands between commas, blanks or repeated options."""
    return [part for text in texts for part in text.replace(",", " ").split()] if texts else None


def _numbers(parts: Sequence[str] | None) -> list[float] | None:
    if parts is None:
        return None
    said = ",".join(parts)
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise InvalidRequest(f"The budgets {said!r} are no numbers; write them like 0.5,1,2,4.") from None
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise InvalidRequest(f"The budgets {said!r} must be more than 0 samples per query.")
    return numbers
