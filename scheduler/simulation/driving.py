"""Drives the daemon's strategies on recorded samples: what they ask for is drawn, and what they choose is judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import NO_ANSWER, Ints
from scheduler.core.policies.strategies import StrategyRule
from scheduler.core.strategies import STRATEGIES, Generate
from scheduler.simulation.recorded import Draws
from scheduler.types import Arm, Plan, Query, Sample

TOKENS_MAX = 1_000_000
"""Recorded samples have the length they have; none is cut."""


def drive(draws: Draws, rule: StrategyRule) -> tuple[Ints, Ints, Floats]:
    """(Q, R) samples drawn, waves sent, and whether the chosen sample is right."""
    shape = draws.tokens.shape[:2]
    drawn, waves, right = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    for row in range(shape[0]):
        recorded = _samples(draws, row)
        for order in range(shape[1]):
            lane = [recorded[i] for i in draws.order[row, order]]
            cell = row, order
            drawn[cell], waves[cell], right[cell] = _run(rule.strategy, lane, int(rule.samples[row]))
    return drawn, waves, right


def _run(strategy: str, lane: Sequence[Sample], samples_max: int) -> tuple[int, int, bool]:
    query = Query(id=0, model="recorded", messages=(), prompt_tokens=0, prompt_tokens_max=0)
    plan = Plan(
        query_id=0,
        arm=Arm(model="recorded", strategy=strategy),
        samples_max=samples_max,
        tokens_max=TOKENS_MAX,
        ceiling_nanousd=None,
    )
    steps = STRATEGIES[strategy](query, plan)
    drawn = waves = 0
    try:
        want = next(steps)
        while True:
            if isinstance(want, Generate):
                given = tuple(lane[drawn : drawn + want.n])
                drawn, waves = drawn + len(given), waves + 1
                want = steps.send(given)
            else:
                want = steps.send(tuple(1.0 if sample.correct else 0.0 for sample in want.samples))
    except StopIteration as end:
        chosen: Sample | None = end.value.chosen
        return drawn, waves, bool(chosen is not None and chosen.correct)


def _samples(draws: Draws, row: int) -> list[Sample]:
    """The recorded samples of one query, as a worker would hand them to a strategy."""
    given = draws.recorded.samples
    return [
        Sample(
            text="",
            tokens=int(given.tokens[row, i]),
            answer=None if given.answers[row, i] == NO_ANSWER else str(given.answers[row, i]),
            logprob_mean=None if np.isnan(given.logprob[row, i]) else float(given.logprob[row, i]),
            correct=bool(given.accepted[row, i]),
        )
        for i in range(given.answers.shape[1])
    ]
