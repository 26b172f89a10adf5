"""How long completions get: their mean and quantiles, from a query's features."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge, RidgeCV

from scheduler.core.beliefs import TOKENS_LEVELS
from scheduler.core.evidence import Ints

Floats = NDArray[np.float64]

ALPHAS = tuple(10.0**power for power in np.arange(-3, 2.5, 0.5))

QUERIES_MIN = 5
"""With fewer queries there is nothing to choose the penalty by, and the strongest one is taken."""


class LengthRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ridge on the logarithm of a query's mean length; the quantiles are those of length / mean, the same for all."""

    def __init__(self, *, levels: tuple[float, ...] = TOKENS_LEVELS) -> None:
        self.levels = levels

    def fit(self, X: Floats, tokens: Ints, real: NDArray[np.bool_]) -> Self:  # noqa: N803
        """Learn from the lengths (Q, N) of those samples that are `real`."""
        means = np.maximum(np.where(real, tokens, 0).sum(axis=1) / real.sum(axis=1), 1.0)
        self.low_, self.high_ = float(means.min()), float(means.max())
        ridge = RidgeCV(alphas=ALPHAS) if len(X) >= QUERIES_MIN else Ridge(alpha=ALPHAS[-1])
        self.ridge_ = ridge.fit(X, np.log(means))
        self.factor_ = 1.0
        expected = self.predict(X)
        self.factor_ = float(means.sum() / expected.sum())
        self.ratios_ = np.quantile((tokens / (expected * self.factor_)[:, None])[real], self.levels)
        return self

    def predict(self, X: Floats) -> Floats:  # noqa: N803
        """The expected length of each row; never outside of what was seen."""
        return np.asarray(np.exp(np.clip(self.ridge_.predict(X), np.log(self.low_), np.log(self.high_))) * self.factor_)

    def quantiles(self, X: Floats) -> Floats:  # noqa: N803
        """The quantiles of each row's length, one column per level."""
        return np.asarray(self.predict(X)[:, None] * self.ratios_)
