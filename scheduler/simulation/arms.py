"""Replays the choice of a model: the same queries under several arms, and which of them to ask in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.escalation import STOP, ArmsModel, Standing, answered, at_cost, fit_arms, next_arm, refused
from scheduler.core.evidence import NO_ANSWER, Bools, Ints
from scheduler.core.policies.base import Mode
from scheduler.errors import InvalidRequest
from scheduler.simulation.frontiers import Frontier, frontier
from scheduler.simulation.pools import PoolLine
from scheduler.simulation.replay import Replay

PRICES = 24
"""Points of the frontier."""
DEPTHS = ((4, 3), (8, 2))
"""Up to so many arms, so many answers ahead: more would take minutes, and beyond three nothing was gained."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecordedArms:
    """Q queries under A arms, one answer each: all (Q, A).

    `answers` are codes per query. `tokens` counts in tokens of the smallest model drawn once: a model of eleven times
    the parameters, or a hundred draws, count as many times. `cost` is USD where every answer is priced, else `tokens`.
    """

    arms: tuple[str, ...]
    ids: tuple[str, ...]
    right: Bools
    answers: Ints
    tokens: Floats
    usd: Floats
    cost: Floats


def as_arms(lines: Sequence[PoolLine]) -> RecordedArms:
    """Lines as a table of queries and arms. Raises InvalidRequest where a query lacks an arm."""
    arms, ids = sorted({line.arm for line in lines}), sorted({line.id for line in lines})
    table = {(line.id, line.arm): line for line in lines}
    missing = [f"{query_id} under {arm}" for query_id in ids for arm in arms if (query_id, arm) not in table]
    if missing:
        raise InvalidRequest(f"Every query needs every arm to be replayed; missing: {', '.join(missing[:5])}.")
    rows = [[table[query_id, arm] for arm in arms] for query_id in ids]
    smallest = min((line.model_params_b for line in lines if line.model_params_b), default=1.0)
    tokens = np.array([[_weight(line, smallest) * line.samples[0].tokens for line in row] for row in rows])
    usd = np.array([[_usd(line) for line in row] for row in rows])
    return RecordedArms(
        arms=tuple(arms),
        ids=tuple(ids),
        right=np.array([[line.samples[0].correct == 1 for line in row] for row in rows]),
        answers=np.array([_codes([line.samples[0].answer for line in row]) for row in rows]),
        tokens=tokens,
        usd=usd,
        cost=tokens if np.isnan(usd).any() else usd,
    )


def arms_frontiers(train: RecordedArms, test: RecordedArms, mode: Mode) -> dict[str, Frontier]:
    """Each arm alone, the choice among them, and what hindsight would choose."""
    if train.arms != test.arms:
        theirs, ours = ", ".join(train.arms), ", ".join(test.arms)
        raise InvalidRequest(f"Training pools have the arms {theirs}, test pools {ours}; they must be the same.")
    model = fit_arms(train.right, train.cost, train.answers)
    dearest = float(train.cost.mean(axis=0).max())
    prices = np.geomspace(1e-3, 3e3, PRICES) / dearest
    curve = partial(frontier, by_usd=not np.isnan(test.usd).any())
    found = {
        "uniform": curve([(arm, _alone(test, column)) for column, arm in enumerate(test.arms)]),
        "allotd": curve([(f"{price:.3g}", escalate(model, test, float(price), mode)) for price in prices]),
        "hindsight": curve([(f"{limit:.3g}", _hindsight(test, float(limit))) for limit in _limits(test)]),
    }
    if mode is Mode.VERIFIER:
        order = tuple(int(arm) for arm in np.argsort(train.cost.mean(axis=0)))
        found["stop"] = curve([(test.arms[order[n - 1]], _cascade(test, order[:n])) for n in range(1, len(order) + 1)])
    return found


def escalate(model: ArmsModel, test: RecordedArms, price: float, mode: Mode) -> Replay:
    """Ask arms one after the other, as the price allows; queries that stand alike are decided together."""
    asked = np.zeros(test.right.shape, bool)
    right = np.zeros(len(test.ids), bool)
    depth = next((ahead for arms, ahead in DEPTHS if len(test.arms) <= arms), 1)
    waiting = [_Together(standing=Standing.fresh(model, len(test.ids)), rows=np.arange(len(test.ids)), said=())]
    while waiting:
        group = waiting.pop()
        choice = next_arm(model, group.standing, price, judged=mode is Mode.VERIFIER, depth=depth)
        for arm in np.unique(choice):
            part = group.take(choice == arm)
            if arm == STOP:
                right[part.rows] = mode is Mode.VOTE and _elected_right(test, part)
                continue
            asked[part.rows, arm] = True
            seen = at_cost(model, part.standing, arm, test.cost[part.rows, arm])
            part = replace(part, standing=seen)
            if mode is Mode.VERIFIER:
                right[part.rows] = test.right[part.rows, arm]
                part = part.take(~test.right[part.rows, arm])
                waiting.append(replace(part, standing=refused(model, part.standing, arm)))
            else:
                waiting += _apart(model, test, part, int(arm))
    return _replay(test, asked, right)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Together:
    """Queries that stand alike: `rows` of the table, and the answer that each group of `standing` stands for."""

    standing: Standing
    rows: Ints
    said: tuple[Ints, ...]

    def take(self, some: Bools) -> _Together:
        standing = Standing(joint=self.standing.joint[some], asked=self.standing.asked)
        return _Together(standing=standing, rows=self.rows[some], said=tuple(answers[some] for answers in self.said))


def _apart(model: ArmsModel, test: RecordedArms, before: _Together, arm: int) -> list[_Together]:
    """The queries after the arm answered, apart by which group its answer joins or founds."""
    answer = test.answers[before.rows, arm]
    group = np.full(len(answer), len(before.said))
    for index, earlier in enumerate(before.said):
        group[answer == earlier] = index
    group[answer == NO_ANSWER] = NO_ANSWER
    after = []
    for each in np.unique(group):
        part = before.take(group == each)
        said = (*part.said, answer[group == each]) if each == len(before.said) else part.said
        after.append(replace(part, standing=answered(model, part.standing, arm, int(each)), said=said))
    return after


def _elected_right(test: RecordedArms, group: _Together) -> Bools:
    """Whether the answer that leads is right; where none was given, nothing is."""
    if not group.said:
        return np.zeros(len(group.rows), bool)
    answer = np.array(group.said)[group.standing.leading, np.arange(len(group.rows))]
    gave = test.answers[group.rows] == answer[:, None]
    return np.asarray(test.right[group.rows, gave.argmax(axis=1)])


def _alone(test: RecordedArms, arm: int) -> Replay:
    asked = np.zeros(test.right.shape, bool)
    asked[:, arm] = True
    return _replay(test, asked, test.right[:, arm])


def _cascade(test: RecordedArms, order: tuple[int, ...]) -> Replay:
    """Cheapest first, until one is accepted."""
    asked, right = np.zeros(test.right.shape, bool), np.zeros(len(test.ids), bool)
    for arm in order:
        asked[~right, arm] = True
        right |= test.right[:, arm]
    return _replay(test, asked, right)


def _hindsight(test: RecordedArms, limit: float) -> Replay:
    """The cheapest right answer, where it costs no more than the limit."""
    price = np.where(test.right, test.cost, np.inf)
    best = price.argmin(axis=1)
    pays = price.min(axis=1) <= limit
    asked = np.zeros(test.right.shape, bool)
    asked[np.flatnonzero(pays), best[pays]] = True
    return _replay(test, asked, pays)


def _limits(test: RecordedArms) -> Floats:
    cheapest = np.where(test.right, test.cost, np.inf).min(axis=1)
    return np.quantile(cheapest[np.isfinite(cheapest)], np.linspace(0, 1, PRICES)) if test.right.any() else np.zeros(1)


def _replay(test: RecordedArms, asked: Bools, right: Bools) -> Replay:
    spent = {name: np.where(asked, values, 0.0).sum(axis=1) for name, values in _costs(test).items()}
    count = asked.sum(axis=1).astype(np.float64)
    return Replay(right=right.astype(np.float64), samples=count, requests=count, **spent)


def _costs(test: RecordedArms) -> Mapping[str, Floats]:
    return {"tokens": test.tokens, "usd": test.usd}


def _weight(line: PoolLine, smallest: float) -> float:
    return (line.model_params_b or smallest) / smallest * (line.draws_per_answer or 1)


def _usd(line: PoolLine) -> float:
    sample = line.samples[0]
    if sample.cost_usd is not None:
        return sample.cost_usd
    if line.price is None:
        return float("nan")
    prompt = line.prompt_tokens * line.price.prompt_usd_per_mtok
    return (prompt + sample.tokens * line.price.completion_usd_per_mtok) / 1e6


def _codes(answers: Sequence[str | None]) -> list[int]:
    codes: dict[str, int] = {}
    return [codes.setdefault(answer, len(codes)) if answer else NO_ANSWER for answer in answers]
