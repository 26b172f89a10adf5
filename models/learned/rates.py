"""How often a sample of a query is right: from its features, or from the rates of its task and tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

from models.learned.facts import Facts
from scheduler.core.lessons import RATE_MAX, RATE_MIN, expit, logit
from scheduler.core.priors import fit_beta

Floats = NDArray[np.float64]

PRIOR_SAMPLES = 0.25
"""Samples at the mean rate that are added to each query's own before its rate is taken."""
FALLBACK_SAMPLES = 1.0
"""The same, at a rate of a half, for rates of tasks and tenants: they may have been taught by one query."""
KERNEL_ROWS_MAX = 4000
"""Rows of the kernel: its memory grows with their square. Beyond that a random part teaches it."""
CHUNK = 2_000
"""Queries whose kernel rows are held at once: 64 MB of them."""


class RateRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """The mean, in log-odds, of a smooth (kernel ridge) and a linear (logistic) model.

    It learns from shares of right samples. Where those stop at the first right one, hard queries have more of them: by
    the number of its samples a query would count too much and the rates come out too low, alike too little and too
    high. By its root they come out about right, and vary with the true ones most.

    Either alone was worse on the recorded pools: their errors differ. `gamma` and `alpha` are those of the kernel
    ridge, `C` that of the logistic regression.
    """

    def __init__(self, *, gamma: float = 0.25, alpha: float = 0.07, C: float = 3.0, seed: int = 0) -> None:  # noqa: N803
        self.gamma = gamma
        self.alpha = alpha
        self.C = C
        self.seed = seed

    def fit(self, X: Floats, right: Floats, drawn: Floats) -> Self:  # noqa: N803
        """Learn from counts: `right` of `drawn` samples per row."""
        self.mean_ = float(np.clip(_mean(right, drawn), RATE_MIN, RATE_MAX))
        rates = (right + PRIOR_SAMPLES * self.mean_) / (drawn + PRIOR_SAMPLES)
        rows = np.random.default_rng(self.seed).permutation(len(X))[:KERNEL_ROWS_MAX]
        weights = np.sqrt(drawn / drawn.mean())
        self.kernel_ = KernelRidge(kernel="rbf", gamma=self.gamma, alpha=self.alpha)
        self.kernel_.fit(X[rows], rates[rows] - self.mean_, sample_weight=weights[rows])
        labels = np.repeat([1, 0], len(X))
        parts = np.r_[rates * weights, (1 - rates) * weights]
        self.linear_ = LogisticRegression(C=self.C, max_iter=1000).fit(np.vstack([X, X]), labels, sample_weight=parts)
        return self

    def predict(self, X: Floats) -> Floats:  # noqa: N803
        """The expected rate of each row."""
        smooth = np.concatenate([self.kernel_.predict(X[at : at + CHUNK]) for at in range(0, len(X), CHUNK)] or [[]])
        linear = self.linear_.predict_proba(X)[:, 1] if len(X) else np.zeros(0)
        return expit((logit(smooth + self.mean_) + logit(linear)) / 2)


class FallbackRates(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Rates of a task, of a tenant within it, and of all: each is drawn to the wider one where its data are thin.

    `strength` is how many queries' worth of the wider rate is added to each.
    """

    def __init__(self, *, strength: float = 3.0) -> None:
        self.strength = strength

    def fit(self, facts: Sequence[Facts], right: Floats, drawn: Floats) -> Self:
        """Learn from counts: `right` of `drawn` samples per query."""
        rates = (right + FALLBACK_SAMPLES * 0.5) / (drawn + FALLBACK_SAMPLES)
        self.rate_ = float((rates.sum() + 0.5) / (len(rates) + 1))
        tasks = [_task(fact) for fact in facts]
        self.tasks_ = self._shrunk(tasks, rates, [self.rate_] * len(facts))
        self.tenants_ = self._shrunk([_tenant(fact) for fact in facts], rates, [self.tasks_[task] for task in tasks])
        return self

    def predict(self, facts: Sequence[Facts]) -> Floats:
        """The rate of the narrowest group that each query belongs to."""
        rates = [self.tenants_.get(_tenant(fact), self.tasks_.get(_task(fact), self.rate_)) for fact in facts]
        return np.clip(np.array(rates, np.float64), RATE_MIN, RATE_MAX)

    def _shrunk(self, groups: Sequence[str], rates: Floats, wider: Sequence[float]) -> dict[str, float]:
        sums: dict[str, tuple[float, float]] = {}
        around = dict(zip(groups, wider, strict=True))
        for group, rate in zip(groups, rates, strict=True):
            total, count = sums.get(group, (0.0, 0.0))
            sums[group] = (total + float(rate), count + 1)
        return {
            group: (total + self.strength * around[group]) / (count + self.strength)
            for group, (total, count) in sums.items()
        }


def _mean(right: Floats, drawn: Floats) -> float:
    """The mean rate of queries, whatever ended their samples."""
    return fit_beta(right.astype(np.int64), drawn.astype(np.int64)).mean


def _task(fact: Facts) -> str:
    return fact.task or ""


def _tenant(fact: Facts) -> str:
    return f"{_task(fact)}\n{fact.tenant or ''}"
