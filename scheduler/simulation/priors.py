"""What is believed of recorded queries where nothing was learned but how often samples of other queries were right."""

from __future__ import annotations

import numpy as np

from scheduler.core.beliefs import TOKENS_LEVELS, Beliefs, uniform_beliefs
from scheduler.core.evidence import Ints
from scheduler.simulation.recorded import Recorded

CONCENTRATION_MIN, CONCENTRATION_MAX = 0.2, 50.0
"""How many samples a fitted prior may be worth; outside of this, thin data speak louder than they should."""
UNKNOWN_TOKENS = 120.0
"""A completion's length where nothing was recorded: the median of rg-qwen05b."""


def plain_beliefs(train: Recorded | None, queries: int) -> Beliefs:
    """The same Beta prior and lengths for every query: those of the training queries as a whole."""
    if train is None:
        return uniform_beliefs(queries, UNKNOWN_TOKENS, (UNKNOWN_TOKENS,) * len(TOKENS_LEVELS))
    real = np.arange(train.samples.tokens.shape[1]) < train.samples_max[:, None]
    lengths = train.samples.tokens[real]
    alpha, beta = fit_beta(train.samples.accepted.sum(axis=1), train.samples_max)
    return Beliefs(
        alpha=np.full(queries, alpha),
        beta=np.full(queries, beta),
        tokens_mean=np.full(queries, lengths.mean()),
        tokens_quantiles=np.tile(np.quantile(lengths, TOKENS_LEVELS), (queries, 1)),
    )


def fit_beta(right: Ints, drawn: Ints) -> tuple[float, float]:
    """The Beta whose mean and spread over queries the counts show, by moments."""
    rates = right / drawn
    mean = float(np.clip(rates.mean(), 1e-3, 1 - 1e-3))
    chance = mean * (1 - mean)
    # Var(rate) = mean (1 - mean) (1 + (n - 1) rho) / n, rho = 1 / (concentration + 1)
    n = float(drawn.mean())
    rho = (n * float(rates.var()) / chance - 1) / max(n - 1, 1.0)
    concentration = float(np.clip(1 / np.clip(rho, 1e-3, 1.0) - 1, CONCENTRATION_MIN, CONCENTRATION_MAX))
    return mean * concentration, (1 - mean) * concentration
