"""Replays policies on recorded pools and compares their frontiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from models.learned.predictor import DifficultyPredictor
from scheduler.core.beliefs import Beliefs
from scheduler.core.policies import POLICIES, WITH_HISTORY
from scheduler.core.policies.base import History, Mode, Policy, Setting, Workload
from scheduler.core.policies.oracle import Hindsight, Oracle
from scheduler.errors import InvalidRequest
from scheduler.simulation.arms import arms_frontiers, as_arms
from scheduler.simulation.frontiers import Frontier, Point, frontier, points, ratios, resamples
from scheduler.simulation.learned import as_facts, teach
from scheduler.simulation.pools import PoolLine
from scheduler.simulation.priors import plain_beliefs
from scheduler.simulation.recorded import Draws, as_recorded, draw, mean_curves
from scheduler.simulation.replay import replay
from scheduler.simulation.splits import apart
from scheduler.simulation.thinking import thinking_frontiers
from scheduler.types import COUNTS_ONLY

BASELINES = ("uniform", "stop", "asc")
FLAGSHIP, BOUND = "allotd", "oracle"
PART_BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.25, 1.5, 1.75, 2.5, 3.0, 3.5, 5.0, 6.0, 7.0)
GROWTH = 1.25
"""From eight samples on, budgets lie this far apart."""


class Kind(StrEnum):
    """What a pool asks: how many samples, which model, or how long to think."""

    SAMPLES = "samples of one arm"
    ARMS = "several arms"
    THINKING = "thinking with checkpoints"


def kind_of(lines: Sequence[PoolLine]) -> Kind:
    """The kind of all lines. Raises InvalidRequest where they are of several."""
    arms = Counter(line.id for line in lines)
    kinds = {
        Kind.THINKING if line.checkpoints is not None else Kind.ARMS if arms[line.id] > 1 else Kind.SAMPLES
        for line in lines
    }
    if len(kinds) != 1:
        raise InvalidRequest(f"One workload cannot hold {' and '.join(sorted(kinds)) or 'nothing'}; name pools apart.")
    return kinds.pop()


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """How the policies did on one workload."""

    mode: Mode
    queries: int
    frontiers: Mapping[str, list[Point]]
    versus: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    versus_ci95: Mapping[str, Mapping[str, Mapping[str, tuple[float, float] | None]]]
    oracle_share: Mapping[str, float | None]
    by_usd: bool = False

    def as_json(self) -> dict[str, Any]:
        """The JSON that programs read."""
        return {
            "mode": str(self.mode),
            "queries": self.queries,
            "frontiers": {
                name: [
                    {
                        "tokens_per_query": point.tokens_per_query,
                        "usd_per_query": point.usd_per_query,
                        "accuracy": point.accuracy,
                        "ci95": list(point.ci95),
                    }
                    for point in found
                ]
                for name, found in self.frontiers.items()
            },
            "versus": self.versus,
            "versus_ci95": self.versus_ci95,
            "oracle_share": self.oracle_share,
        }


def simulate(
    train: Sequence[PoolLine],
    test: Sequence[PoolLine],
    *,
    mode: Mode,
    policies: Sequence[str] | None,
    budgets: Sequence[float] | None,
    draws: int,
    seed: int,
) -> Simulation:
    """Replay policies on the test queries, with what the training queries teach."""
    train, test = apart(train, test, seed)
    if not test:
        raise InvalidRequest("All test queries teach as well, and they are too few to be split.")
    kind = kind_of(test)
    if train and kind_of(train) is not kind:
        raise InvalidRequest(f"The test pools are {kind}, the training pools {kind_of(train)}; they must be of a kind.")
    if kind is not Kind.SAMPLES:
        curves = _special(kind, train, test, mode)
        chosen = _chosen(dict.fromkeys(curves, (mode,)), policies, mode)
        curves = {name: curves[name] for name in chosen}
        return compare(curves, mode=mode, queries=len({line.id for line in test}), seed=seed)
    recorded, earlier = as_recorded(test), as_recorded(train) if train else None
    learned = teach(earlier, with_probe=are_probed((*train, *test)), seed=seed) if earlier is not None else None
    lessons = learned[0].lessons if learned is not None else COUNTS_ONLY
    drawn = draw(recorded, mode=mode, draws=draws, seed=seed, lessons=lessons)
    taught = draw(earlier, mode=mode, draws=draws, seed=seed, lessons=lessons) if earlier is not None else None
    workload = known_before(learned, taught, drawn)
    known = {**POLICIES, **all_knowing(drawn)}
    chosen = _chosen({name: policy.modes for name, policy in known.items()}, policies, mode)
    if not train and (untaught := WITH_HISTORY.intersection(policies or ())):
        names = ", ".join(sorted(untaught))
        raise InvalidRequest(f"These measure on earlier queries what budgets bring: {names}. Name pools with --train.")
    asked = sorted(budgets or default_budgets(int(workload.samples_max.max())))
    curves = {
        name: frontier([(s.label, replay(drawn, s.rule, weighs_votes=s.weighs_votes)) for s in found])
        for name in chosen
        if (found := _rehearsed(known[name], known[name].settings(workload, asked), workload, taught))
    }
    return compare(curves, mode=mode, queries=len(test), seed=seed)


def known_before(learned: tuple[DifficultyPredictor, Beliefs] | None, taught: Draws | None, drawn: Draws) -> Workload:
    """What is known of the test queries before anything is spent on them."""
    lines, samples_max = drawn.recorded.lines, drawn.recorded.samples_max
    if taught is None or learned is None:
        beliefs = plain_beliefs(None, len(lines))
        return Workload(mode=drawn.mode, beliefs=beliefs, samples_max=samples_max)
    predictor, unseen = learned
    right, tokens = mean_curves(taught)
    return Workload(
        mode=drawn.mode,
        beliefs=predictor.beliefs([as_facts(line) for line in lines]),
        lessons=predictor.lessons,
        samples_max=samples_max,
        history=History(beliefs=unseen, right=right, tokens=tokens),
    )


def are_probed(lines: Sequence[PoolLine]) -> bool:
    """Whether all lines have a probe. Raises InvalidRequest where probes are not of one model and layer."""
    probes = [line.probe for line in lines if line.probe is not None]
    views = {(probe.model, probe.layer, len(probe.vector)) for probe in probes}
    if len(views) > 1:
        seen = "; ".join(f"{model or 'no name'}, layer {layer}, {size} numbers" for model, layer, size in sorted(views))
        raise InvalidRequest(f"The pools' probes are of different views ({seen}); run `allotd probe` on all of them.")
    return len(probes) == len(lines)


def _rehearsed(policy: Policy, found: list[Setting], workload: Workload, taught: Draws | None) -> list[Setting]:
    """Of a policy with more than one knob, the settings that are worth their cost on the training queries.

    Chosen on the test queries, the best of so many would look better than they are.
    """
    if taught is None or workload.history is None or not any(setting.rehearse for setting in found):
        return found
    earlier = replace(workload, beliefs=workload.history.beliefs, samples_max=taught.recorded.samples_max, history=None)
    rehearsal = {s.label: replay(taught, s.rule, weighs_votes=s.weighs_votes) for s in policy.settings(earlier, ())}
    best, kept = -1.0, set()
    for label, run in sorted(rehearsal.items(), key=lambda item: float(item[1].tokens.mean())):
        if float(run.right.mean()) > best:
            best = float(run.right.mean())
            kept.add(label)
    return [setting for setting in found if not setting.rehearse or setting.label in kept]


def all_knowing(drawn: Draws) -> dict[str, Policy]:
    """The lines nobody can pass: they know what the workload's samples show."""
    samples, count = drawn.recorded.samples, drawn.recorded.samples_max
    right, tokens = mean_curves(drawn)
    oracle = Oracle(
        rates=samples.accepted.sum(axis=1) / count,
        tokens_mean=samples.tokens.sum(axis=1) / count,
        right=right,
        tokens=tokens,
    )
    return {policy.name: policy for policy in (oracle, Hindsight(drawn.right, drawn.tokens))}


def default_budgets(samples_max: int) -> list[float]:
    """Parts of a sample, powers of two, steps between them, and everything there is."""
    powers = [float(2**i) for i in range(samples_max.bit_length()) if 2**i <= samples_max]
    steps: list[float] = []
    step = 8.0
    while (step := step * GROWTH) < samples_max:
        steps.append(round(step, 1))
    return sorted({*(b for b in PART_BUDGETS if b < samples_max), *powers, *steps, float(samples_max)})


def compare(curves: Mapping[str, Frontier], *, mode: Mode, queries: int, seed: int) -> Simulation:
    """Frontiers, ratios at equal accuracy with their intervals, and the share of what the oracle gains."""
    weights = resamples(queries, seed)
    versus: dict[str, dict[str, dict[str, float | None]]] = {}
    intervals: dict[str, dict[str, dict[str, tuple[float, float] | None]]] = {}
    for name, curve in curves.items():
        versus[name], intervals[name] = {}, {}
        for baseline in BASELINES:
            if baseline in curves:
                single = ratios(curve, curves[baseline])
                spread = ratios(curve, curves[baseline], weights)
                versus[name][baseline] = {n: _number(ratio[0]) for n, ratio in single.items()}
                intervals[name][baseline] = {n: _interval(ratio) for n, ratio in spread.items()}
    return Simulation(
        mode=mode,
        queries=queries,
        frontiers={name: points(curve, weights) for name, curve in curves.items()},
        versus=versus,
        versus_ci95=intervals,
        oracle_share=_share(versus),
        by_usd=any(curve.by_usd for curve in curves.values()),
    )


def _share(versus: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, float | None]:
    """(ratio - 1) / (the oracle's ratio - 1), against uniform, per n."""
    ours, bound = (versus.get(name, {}).get("uniform", {}) for name in (FLAGSHIP, BOUND))
    shares: dict[str, float | None] = {}
    for n in ours if bound else ():
        ratio, most = ours[n], bound.get(n)
        shares[n] = None if ratio is None or most is None or most <= 1 else (ratio - 1) / (most - 1)
    return shares


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(values: Any) -> tuple[float, float] | None:
    if np.isnan(values).all():
        return None
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def _special(kind: Kind, train: Sequence[PoolLine], test: Sequence[PoolLine], mode: Mode) -> dict[str, Frontier]:
    """What is no question of how many samples: which model to ask, or how long one thinks."""
    if not train:
        raise InvalidRequest(f"Pools of {kind} need training pools: name some with --train.")
    if kind is Kind.ARMS:
        return arms_frontiers(as_arms(train), as_arms(test), mode)
    return thinking_frontiers(train, test)


def _chosen(known: Mapping[str, Collection[Mode]], wanted: Sequence[str] | None, mode: Mode) -> list[str]:
    fitting = [name for name, modes in known.items() if mode in modes]
    if wanted is None:
        return fitting
    if not wanted:
        raise InvalidRequest(f"No policy is named; there are {', '.join(fitting)}.")
    for name in wanted:
        if name not in known:
            raise InvalidRequest(f"There is no policy {name!r}; there are {', '.join(known)}.")
        if name not in fitting:
            raise InvalidRequest(f"The policy {name!r} knows no {mode} mode; in it there are {', '.join(fitting)}.")
    return list(wanted)
