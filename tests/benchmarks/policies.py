"""Every policy on every pool there is, trained on one half, replayed on the other: `make bench-allocation`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from scheduler.core.policies.base import Mode
from scheduler.simulation.plots import plot
from scheduler.simulation.pools import PoolLine, read_pools
from scheduler.simulation.simulate import Simulation, simulate
from scheduler.simulation.splits import is_first_half

POOLS = Path(__file__).parents[2].parent / "shared" / "pools"
"""Where pools are looked for unless ALLOTD_POOLS names another folder."""
OUT = Path("bench-allocation")
WORKLOADS: Mapping[str, tuple[str, ...]] = {
    "rg+gsm8k-qwen05b": ("rg-qwen05b", "gsm8k-qwen05b"),
    "rg-qwen05b": ("rg-qwen05b",),
    "svamp-codex": ("svamp-codex",),
    "game24-gpt4": ("game24-gpt4",),
    "gsm8k-6b-175b": ("gsm8k-6b-175b",),
    "reasoning-models": ("reasoning-models",),
    "gsm8k-thinking": ("gsm8k-thinking",),
}
VERIFIER_ONLY = ("game24-gpt4", "gsm8k-thinking")
"""Answers that are not voted on."""
SPLITS = 2
"""Random halvings; each is replayed both ways."""
SHOWN_N = ("1", "2", "4", "8", "16", "30", "100")
SHOWN_THRESHOLDS = ("0.8", "0.9", "0.95", "0.99")
SHOWN_CAPS = ("96", "192", "480", "1008", "2064")


def main() -> int:
    """Print the ratios of all workloads whose pools are there, and draw their frontiers."""
    folder = Path(os.environ.get("ALLOTD_POOLS", POOLS))
    found = {path.name.removesuffix(".jsonl.gz"): path for path in sorted(folder.glob("*.jsonl.gz"))}
    print(f"pools in {folder}: {', '.join(found) or 'none'}")
    if not found:
        print("Name a folder of recorded pools with ALLOTD_POOLS; `allotd record` makes one.")
        return 1
    OUT.mkdir(exist_ok=True)
    for name, pools in WORKLOADS.items():
        missing = [pool for pool in pools if pool not in found]
        if missing:
            print(f"\n{name}: left out, as {', '.join(missing)} is not there")
            continue
        lines = read_pools([found[pool] for pool in pools])
        for mode in Mode:
            if mode is Mode.VERIFIER or name not in VERIFIER_ONLY:
                show(name, mode, list(crossed(lines, mode)))
    print(f"\nplots are in {OUT}/")
    return 0


def crossed(lines: Sequence[PoolLine], mode: Mode) -> Iterator[Simulation]:
    """Each half replayed with what the other teaches."""
    for split in range(SPLITS):
        first = [line for line in lines if is_first_half(line.id, split)]
        second = [line for line in lines if not is_first_half(line.id, split)]
        for train, test in ((first, second), (second, first)):
            yield simulate(train, test, mode=mode, policies=None, budgets=None, draws=20, seed=split)


def show(name: str, mode: Mode, runs: Sequence[Simulation]) -> None:
    """The mean ratios over all splits, the range of ours, and the picture of the first."""
    plot(runs[0], OUT / f"{name}-{mode}.svg", title=f"{name}, {mode} mode, {runs[0].queries} queries")
    versus = runs[0].versus
    for baseline in dict.fromkeys(each for ours in versus.values() for each in ours):
        settings = _settings(runs[0], baseline)
        print(f"\n{name}, {mode} mode, x less than {baseline}" + "".join(f"{f'@{n}':>12}" for n in settings))
        for policy in versus:
            if policy != baseline and baseline in versus[policy]:
                ratios = [[run.versus.get(policy, {}).get(baseline, {}).get(n) for run in runs] for n in settings]
                print(f"  {policy:<40}" + "".join(f"{_mean(each):>12}" for each in ratios))
                if policy == "allotd":
                    print(f"  {'  lowest .. highest':<40}" + "".join(f"{_range(each):>12}" for each in ratios))
    shares = [[run.oracle_share.get(n) for run in runs] for n in SHOWN_N if n in runs[0].oracle_share]
    if shares:
        print(f"  {'of the gain of the oracle':<40}" + "".join(f"{_mean(each):>12}" for each in shares))


def _settings(run: Simulation, baseline: str) -> list[str]:
    """Those of a baseline's settings that are worth a column."""
    there = list(next(ratios[baseline] for ratios in run.versus.values() if baseline in ratios))
    shown = [n for n in there if n in (*SHOWN_N, *SHOWN_THRESHOLDS, *SHOWN_CAPS)]
    return [n for n in shown if "." in n] if baseline == "asc" else shown or there


def _mean(values: Sequence[float | None]) -> str:
    reached = [value for value in values if value is not None]
    return f"{mean(reached):.2f}" + ("*" if len(reached) < len(values) else "") if reached else "-"


def _range(values: Sequence[float | None]) -> str:
    reached = [value for value in values if value is not None]
    return f"{min(reached):.2f}..{max(reached):.2f}" if reached else "-"


if __name__ == "__main__":
    sys.exit(main())
