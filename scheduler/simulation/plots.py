"""A picture of frontiers: accuracy against cost, one line per policy."""

from __future__ import annotations

from pathlib import Path

from scheduler.errors import InvalidRequest
from scheduler.simulation.frontiers import Point
from scheduler.simulation.simulate import FLAGSHIP, Simulation

OURS, BASELINE, BOUNDS = "#c2410c", "#111827", "#9ca3af"
PEERS = ("#2563eb", "#059669", "#7c3aed", "#db2777", "#0891b2", "#ca8a04", "#65a30d", "#4f46e5", "#be123c", "#0d9488")
UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}
"""The formats of a picture, and what keeps the day out of them."""
BASELINES, UNATTAINABLE = ("uniform",), ("oracle", "hindsight")


def plot(found: Simulation, out: Path, title: str | None = None) -> None:
    """Write a PNG or PDF where the name says so, else an SVG; the same bytes for the same figures.

    Raises InvalidRequest without matplotlib.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 (an extra, and slow)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise InvalidRequest("Plots need matplotlib; install allotd[plots].") from None
    by_usd = found.by_usd
    with mpl.rc_context(
        {"svg.hashsalt": "allotd", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        peers = iter(PEERS * 3)
        for name, curve in found.frontiers.items():
            colour, width, style = _look(name)
            costs = [_cost(point, by_usd) for point in curve]
            accuracies = [point.accuracy for point in curve]
            marker = "o" if len(curve) <= 12 else None
            axes.plot(
                costs, accuracies, label=name, color=colour or next(peers), lw=width, ls=style, marker=marker, ms=2.5
            )
            if name == FLAGSHIP:
                low, high = zip(*(point.ci95 for point in curve), strict=True)
                axes.fill_between(costs, low, high, color=OURS, alpha=0.12, lw=0)
        axes.set_xscale("log")
        axes.set_xlabel("USD per query" if by_usd else "completion tokens per query")
        axes.set_ylabel("accuracy")
        axes.set_title(title or f"{found.queries} queries, {found.mode} mode", loc="left")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, ncols=2, fontsize=8)
        kind = out.suffix.lower().removeprefix(".")
        kind = kind if kind in UNDATED else "svg"
        figure.savefig(out, format=kind, metadata=UNDATED[kind])


def _look(name: str) -> tuple[str | None, float, str]:
    """Colour (None for the next of the peers'), width and style of a policy's line."""
    if name == FLAGSHIP:
        return OURS, 2.4, "-"
    if name in BASELINES:
        return BASELINE, 1.6, "-"
    if name in UNATTAINABLE:
        return BOUNDS, 1.2, "--" if name == "oracle" else ":"
    return None, 1.0, "-"


def _cost(point: Point, by_usd: bool) -> float:
    return point.usd_per_query if by_usd and point.usd_per_query is not None else point.tokens_per_query
