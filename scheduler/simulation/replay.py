"""Runs a rule on recorded draws: what every query would have cost, and whether its answer would have been right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints
from scheduler.core.policies.base import Rule
from scheduler.core.policies.strategies import StrategyRule
from scheduler.simulation.driving import drive
from scheduler.simulation.recorded import Draws


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replay:
    """What a rule spent and reached per query, averaged over the draws; all (Q,).

    `usd` is NaN where a pool has no price. `requests` is how many waves were sent.
    """

    right: Floats
    tokens: Floats
    usd: Floats
    samples: Floats
    requests: Floats


def replay(draws: Draws, rule: Rule | StrategyRule, *, weighs_votes: bool = False) -> Replay:
    """Let the rule decide from nothing drawn on, wave after wave, in every draw of every query."""
    if isinstance(rule, StrategyRule):
        drawn, waves, right = drive(draws, rule)
    else:
        drawn, waves = _ends(np.asarray(rule.more(draws.seen)))
        right = _at(draws.elected_right if weighs_votes else draws.right, drawn)
    tokens = _at(draws.tokens, drawn)
    recorded = draws.recorded
    prompts = np.array([line.prompt_tokens for line in recorded.lines])[:, None]
    usd = tokens * recorded.completion_usd[:, None] + waves * prompts * recorded.prompt_usd[:, None]
    return Replay(
        right=right.mean(axis=1),
        tokens=tokens.mean(axis=1),
        usd=usd.mean(axis=1),
        samples=drawn.mean(axis=1),
        requests=waves.mean(axis=1),
    )


def _ends(wanted: Ints) -> tuple[Ints, Ints]:
    """How many samples each query has when its rule asks for no more, and after how many waves."""
    drawn = np.zeros(wanted.shape[:-1], np.int64)
    waves = np.zeros_like(drawn)
    last = wanted.shape[-1] - 1
    while True:
        more = np.minimum(_at(wanted, drawn), last - drawn)
        if not more.any():
            return drawn, waves
        drawn += more
        waves += more > 0


def _at(values: NDArray[Any], drawn: Ints) -> NDArray[Any]:
    return np.take_along_axis(values, drawn[..., None], axis=-1)[..., 0]
