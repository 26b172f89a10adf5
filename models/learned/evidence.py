"""What a prior is worth, and what the samples that failed say beyond having failed: Beta-binomial likelihoods."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression

from scheduler.core.beliefs import Beliefs, Evidence
from scheduler.core.evidence import Bools
from scheduler.core.lessons import expit, logit, next_right, shown, voted
from scheduler.types import Lessons

Floats = NDArray[np.float64]

CONCENTRATION_LOG = (-1.6, 4.6)
"""A prior is worth between 0.2 and 100 samples; beyond that thin data speak louder than they should."""
SURE_MIN = 1e-9
HALF = 0.5
"""What is added to counts of one kind only."""


class BetaScale(BaseEstimator):  # type: ignore[misc]
    """Turns a raw rate into a Beta distribution: recalibrated mean, and concentration, by maximum likelihood.

    With failures only (all that a verifier's policy sees before it stops) the chance that k samples all fail and the
    next is right has a closed form, so the likelihood is that of every sample up to the first right one.
    """

    def __init__(self, *, l2: float = 1e-3) -> None:
        self.l2 = l2

    def fit(self, rates: Floats, failures: Floats, right: Floats, weights: Floats) -> Self:
        """`right` is how often the next sample was right after that many `failures`, one row per case."""
        x = logit(rates)

        def loss(theta: Floats) -> float:
            mean, concentration = _beta(theta, x)
            chance = mean * concentration / (concentration + failures)
            # drawn to "the raw rate is right, and worth as much at every rate"
            moved = float(theta[0] ** 2 + (theta[1] - 1) ** 2 + theta[3] ** 2)
            return _mean_loss(chance, right, weights) + self.l2 * moved

        # rates of queries not seen lean against the others' noise
        bounds: list[tuple[float | None, float | None]] = [(None, None), (0.0, None), (None, None), (None, None)]
        self.theta_ = minimize(loss, np.array([0.0, 1.0, 1.5, 0.0]), method="L-BFGS-B", bounds=bounds).x
        return self

    def transform(self, rates: Floats) -> tuple[Floats, Floats]:
        """alpha and beta per rate."""
        mean, concentration = _beta(self.theta_, logit(rates))
        return mean * concentration, (1 - mean) * concentration


class NextRight(BaseEstimator):  # type: ignore[misc]
    """Learns how failures that were long or short, sure or unsure, alike or not move the chance of the next sample.

    It starts at the prior's own rate and moves its log-odds by what the failures show: a prior that is right already
    costs nothing.
    """

    def __init__(self, *, l2: float = 1e-2) -> None:
        self.l2 = l2

    def fit(self, beliefs: Beliefs, evidence: Evidence, right: Floats, weights: Floats) -> Self:
        """`right` is how often the next sample was right after each case of `evidence`, one row per case."""
        known = evidence.logprob_known > 0
        self.logprob_ = float((evidence.logprob[known] / evidence.logprob_known[known]).mean()) if known.any() else 0.0
        count = shown(beliefs, evidence, self.logprob_).shape[-1]

        def loss(theta: Floats) -> float:
            chance = next_right(_lessons(self.logprob_, theta), beliefs, evidence)
            return _mean_loss(chance, right, weights) + self.l2 * float((theta**2).sum())

        self.theta_ = minimize(loss, np.zeros(count + 1), method="L-BFGS-B").x
        return self

    @property
    def lessons(self) -> Lessons:
        """What it learned of failures."""
        return _lessons(self.logprob_, self.theta_)


class LeaderRight(BaseEstimator):  # type: ignore[misc]
    """Learns how often the most frequent answer is right: a logistic regression on prior, votes and samples."""

    def __init__(self, *, C: float = 1.0) -> None:  # noqa: N803
        self.C = C

    def fit(self, beliefs: Beliefs, evidence: Evidence, right: Bools, logprob_usual: float) -> Self:
        """`right` is whether the leader was right in each case of `evidence`, one row per case."""
        self.logprob_ = logprob_usual
        x, labels = voted(beliefs, evidence, logprob_usual), right
        self.theta_ = np.zeros(x.shape[-1] + 1)
        if 0 < labels.sum() < len(labels):
            model = LogisticRegression(C=self.C, max_iter=1000).fit(x, labels)
            self.theta_[:] = np.r_[model.intercept_, model.coef_[0]]
        else:
            self.theta_[0] = np.log((labels.sum() + HALF) / (len(labels) - labels.sum() + HALF))
        return self

    @property
    def lessons(self) -> Lessons:
        """What it learned of votes."""
        return Lessons(logprob_usual=self.logprob_, leading=tuple(map(float, self.theta_)))


def _lessons(logprob_usual: float, theta: Floats) -> Lessons:
    return Lessons(logprob_usual=logprob_usual, worth_log=float(theta[0]), failing=tuple(map(float, theta[1:])))


def _beta(theta: Floats, x: Floats) -> tuple[Floats, Floats]:
    mean = expit(theta[0] + theta[1] * x)
    return mean, np.exp(np.clip(theta[2] + theta[3] * x, *CONCENTRATION_LOG))


def log_losses(chance: Floats, right: Floats | Bools) -> Floats:
    """The log loss of each case: of a chance, where it was `right` that often."""
    kept = np.clip(chance, SURE_MIN, 1 - SURE_MIN)
    return np.asarray(-(right * np.log(kept) + (1 - right) * np.log(1 - kept)))


def _mean_loss(chance: Floats, right: Floats, weights: Floats) -> float:
    return float((weights * log_losses(chance, right)).sum() / weights.sum())
