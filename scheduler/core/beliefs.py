"""What is believed of many queries under one arm: before anything is spent, and from what their samples show.

`Beliefs` is the prior and `Evidence` what was seen since; `scheduler.core.lessons` puts the two together. All arrays
have one row per query; those of `Evidence` may have further axes (one column per number of samples, say), which lets a
whole replay be scored in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOKENS_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""The quantiles of a completion's length that beliefs state."""

UNIFORM_ALPHA = UNIFORM_BETA = 1.0
"""The prior of a rule that knows nothing: every success rate is as likely as any other."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Beliefs:
    """Q queries of one arm before anything is spent.

    `alpha` and `beta` (Q,) are the parameters of the Beta distribution of the chance that one sample is right;
    `tokens_mean` (Q,) is a completion's expected length and `tokens_quantiles` (Q, len(`levels`)) its quantiles.
    """

    alpha: Floats
    beta: Floats
    tokens_mean: Floats
    tokens_quantiles: Floats
    levels: tuple[float, ...] = TOKENS_LEVELS

    def __post_init__(self) -> None:
        queries = len(self.alpha)
        assert self.beta.shape == self.tokens_mean.shape == (queries,), "one row per query"
        assert self.tokens_quantiles.shape == (queries, len(self.levels)), "one column per level"

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def rate(self) -> Floats:
        """The expected chance that one sample is right."""
        return np.asarray(self.alpha / (self.alpha + self.beta))

    @property
    def concentration(self) -> Floats:
        """How many samples the belief is worth: alpha + beta."""
        return np.asarray(self.alpha + self.beta)

    def take(self, rows: NDArray[Any]) -> Beliefs:
        """The beliefs of some of the queries: by index or by mask."""
        return Beliefs(
            alpha=self.alpha[rows],
            beta=self.beta[rows],
            tokens_mean=self.tokens_mean[rows],
            tokens_quantiles=self.tokens_quantiles[rows],
            levels=self.levels,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """What the samples drawn so far show, per query; every array has the same shape (Q, ...).

    `samples` were drawn, and `failures` of them judged wrong (0 where nothing judges). `tokens` is the sum of their
    lengths; `logprob` the sum of their mean log-probabilities per token over the `logprob_known` samples that came
    with one. `truncated` ran into the limit, `unreadable` had no answer. `leader`, `runner_up` and `distinct` count the
    votes of the most frequent answer, of the next one, and how many different answers there are. `leader_tokens`,
    `leader_logprob` and `leader_logprob_known` are the same sums over the samples that voted for the leader.
    """

    samples: Floats
    failures: Floats
    tokens: Floats
    logprob: Floats
    logprob_known: Floats
    truncated: Floats
    unreadable: Floats
    leader: Floats
    runner_up: Floats
    distinct: Floats
    leader_tokens: Floats
    leader_logprob: Floats
    leader_logprob_known: Floats

    @classmethod
    def none(cls, shape: int | tuple[int, ...]) -> Evidence:
        """Nothing drawn yet."""
        return cls(**{name: np.zeros(shape) for name in cls.__dataclass_fields__})

    def take(self, rows: NDArray[Any] | tuple[Any, ...]) -> Evidence:
        """The evidence of some of the queries (or of some cells): by index, by mask, or by a tuple of indices."""
        return Evidence(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def belief_of_one(alpha: float, beta: float, tokens_mean: float) -> Beliefs:
    """What is believed of a single query, without the quantiles of its length."""
    return Beliefs(
        alpha=np.array([alpha]),
        beta=np.array([beta]),
        tokens_mean=np.array([tokens_mean]),
        tokens_quantiles=np.zeros((1, 0)),
        levels=(),
    )


def uniform_beliefs(queries: int, tokens_mean: float, tokens_quantiles: tuple[float, ...]) -> Beliefs:
    """The same uniform prior and the same lengths for every query."""
    return Beliefs(
        alpha=np.full(queries, UNIFORM_ALPHA),
        beta=np.full(queries, UNIFORM_BETA),
        tokens_mean=np.full(queries, float(tokens_mean)),
        tokens_quantiles=np.tile(np.asarray(tokens_quantiles, dtype=np.float64), (queries, 1)),
    )
