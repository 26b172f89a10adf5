"""Replays sequential thinking: fixed caps, and stopping when the answer looks settled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from sklearn.linear_model import LogisticRegression

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import NO_ANSWER
from scheduler.core.thinking import NEVER, ThinkingRule, Thoughts, concave, look, schedule, think
from scheduler.errors import InvalidRequest
from scheduler.simulation.frontiers import Frontier, frontier
from scheduler.simulation.pools import PoolLine
from scheduler.simulation.replay import Replay

FIRST_LOOKS = (2, 3, 4, 6, 8)
"""Candidates: the first look, in steps between points."""
GROWTHS = (1.0, 1.25, 1.5, 2.0)
THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
CAP_STEPS = (2, 3, 4, 5, 6, 8, 10, 13, 16, 21, 32, 42, 63, 85)
"""Candidates: caps, in steps between points; no cap at all is one more."""
EXAMPLES_MIN = 50
"""Looks with both outcomes that a logistic model needs."""


def as_thoughts(lines: Sequence[PoolLine]) -> Thoughts:
    """Lines with checkpoints as arrays. Raises InvalidRequest where the points do not lie on one grid."""
    most = max(lines, key=lambda line: len(line.checkpoints or ()))
    grid = [point.tokens for point in most.checkpoints or ()]
    off = [ln.id for ln in lines if [p.tokens for p in ln.checkpoints or ()] != grid[: len(ln.checkpoints or ())]]
    if off or not grid or sorted(set(grid)) != grid:
        raise InvalidRequest(f"Checkpoints must lie at the same rising token counts in all lines; see {off[:3]}.")
    table = {name: np.zeros((len(lines), len(grid))) for name in ("answer", "correct", "confidence", "entropy")}
    for row, line in enumerate(lines):
        codes: dict[str, int] = {}
        for column, point in enumerate(line.checkpoints or ()):
            code = codes.setdefault(point.answer, len(codes)) if point.answer else NO_ANSWER
            values = (code, point.correct, point.confidence, point.entropy)
            for name, value in zip(table, values, strict=True):
                table[name][row, column] = value
    asking = [point.probe_tokens for line in lines for point in line.checkpoints or ()]
    return Thoughts(
        tokens=np.array(grid),
        asking=round(float(np.mean(asking))),
        answers=table["answer"].astype(np.int64),
        right=table["correct"] == 1,
        confidence=table["confidence"],
        entropy=table["entropy"],
        count=np.array([len(line.checkpoints or ()) for line in lines]),
        final_tokens=np.array([line.samples[0].tokens for line in lines]),
        final_right=np.array([line.samples[0].correct == 1 for line in lines]),
    )


def thinking_frontiers(train: Sequence[PoolLine], test: Sequence[PoolLine]) -> dict[str, Frontier]:
    """Fixed caps, the learned stops, and what hindsight would do."""
    taught, asked = as_thoughts(train), as_thoughts(test)
    step = int(asked.tokens[0])
    caps = [int(tokens) for tokens in asked.tokens[: int(np.searchsorted(asked.tokens, asked.final_tokens.max())) + 1]]
    fixed = [*caps[:40], *caps[40::8], _endless(asked)]
    return {
        "uniform": frontier([(str(cap), _run(asked, _capped(cap))) for cap in dict.fromkeys(fixed)]),
        "allotd": frontier(_learned(taught, asked, step)),
        "hindsight": frontier(_hindsight(asked)),
    }


def _learned(taught: Thoughts, asked: Thoughts, step: int) -> list[tuple[str, Replay]]:
    """The candidates that are best on the training queries, on the test queries."""
    candidates: list[tuple[str, ThinkingRule, Floats, Floats]] = []
    caps = [step * n for n in CAP_STEPS] + [max(_endless(taught), _endless(asked))]
    for first, growth in product(FIRST_LOOKS, GROWTHS):
        points = schedule(taught.tokens, first * step, growth)
        theirs = schedule(asked.tokens, first * step, growth)
        model = _fit(taught, points)
        if model is None:
            continue
        seen, shown = _chances(model, taught, points), _chances(model, asked, theirs)
        for threshold, cap in product(THRESHOLDS, caps):
            label = f"{first * step}x{growth:g} at {threshold:g} to {cap}"
            candidates.append((label, ThinkingRule(schedule=points, threshold=threshold, cap=cap), seen, shown))
    none = np.zeros((len(taught.count), 0)), np.zeros((len(asked.count), 0))
    candidates += [(f"to {cap}", _capped(cap), *none) for cap in caps]
    runs = [think(taught, rule, seen) for _, rule, seen, _ in candidates]
    accuracies, costs = (np.array([run[part].mean() for run in runs]) for part in (0, 1))
    chosen = [candidates[i] for i in concave(accuracies, costs)]
    chosen.append(("to the end", _capped(_endless(asked)), *none))
    return [
        (label, _run(asked, _on(asked, taught, rule), shown[:, : len(_on(asked, taught, rule).schedule)]))
        for label, rule, _, shown in chosen
    ]


def _on(asked: Thoughts, taught: Thoughts, rule: ThinkingRule) -> ThinkingRule:
    """The rule on other thinkings' points: those that both have are the same."""
    common = min(len(asked.tokens), len(taught.tokens))
    points = tuple(point for point in rule.schedule if point < common)
    return ThinkingRule(schedule=points, threshold=rule.threshold, cap=rule.cap)


def _fit(taught: Thoughts, points: tuple[int, ...]) -> LogisticRegression | None:
    shown, right = [], []
    for k, at in enumerate(points):
        here = taught.count > at
        shown.append(look(taught, points, k)[here])
        right.append(taught.right[here, at])
    if not points or len(set(np.concatenate(right))) < 2 or len(np.concatenate(right)) < EXAMPLES_MIN:
        return None
    return LogisticRegression(max_iter=500).fit(np.concatenate(shown), np.concatenate(right))


def _chances(model: LogisticRegression, thoughts: Thoughts, points: tuple[int, ...]) -> Floats:
    return np.stack([model.predict_proba(look(thoughts, points, k))[:, 1] for k in range(len(points))], axis=1)


def _capped(cap: int) -> ThinkingRule:
    return ThinkingRule(schedule=(), threshold=NEVER, cap=cap)


def _endless(thoughts: Thoughts) -> int:
    return int(thoughts.final_tokens.max())


def _run(thoughts: Thoughts, rule: ThinkingRule, chances: Floats | None = None) -> Replay:
    right, tokens = think(thoughts, rule, np.zeros((len(thoughts.count), 0)) if chances is None else chances)
    return _as_replay(right.astype(np.float64), tokens.astype(np.float64))


def _hindsight(thoughts: Thoughts) -> list[tuple[str, Replay]]:
    """The first point with the right answer, where it comes before a limit."""
    ever = thoughts.right.any(axis=1)
    early = thoughts.tokens[thoughts.right.argmax(axis=1)] + thoughts.asking
    needed = np.where(ever, early, np.where(thoughts.final_right, thoughts.final_tokens, np.iinfo(np.int64).max))
    limits = np.unique(np.quantile(needed[ever | thoughts.final_right], np.linspace(0, 1, 24)).astype(np.int64))
    runs = []
    for limit in limits:
        pays = needed <= limit
        runs.append((str(limit), _as_replay(pays.astype(np.float64), np.where(pays, needed, 0).astype(np.float64))))
    return runs


def _as_replay(right: Floats, tokens: Floats) -> Replay:
    one = np.ones(len(right))
    return Replay(right=right, tokens=tokens, usd=np.full(len(right), np.nan), samples=one, requests=one)
