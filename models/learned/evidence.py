"""What a prior is worth, and what the samples that failed say beyond having failed: Beta-binomial likelihoods."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression

from models.learned.rates import expit, logit
from scheduler.core.beliefs import Beliefs, Evidence

Floats = NDArray[np.float64]

CONCENTRATION_LOG = (-1.6, 4.6)
"""A prior is worth between 0.2 and 100 samples; beyond that thin data speak louder than they should."""
SURE_MIN = 1e-9


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
            return _log_loss(chance, right, weights) + self.l2 * moved

        self.theta_ = minimize(loss, np.array([0.0, 1.0, 1.5, 0.0]), method="L-BFGS-B").x
        return self

    def transform(self, rates: Floats) -> tuple[Floats, Floats]:
        """alpha and beta per rate."""
        mean, concentration = _beta(self.theta_, logit(rates))
        return mean * concentration, (1 - mean) * concentration


class NextRight(BaseEstimator):  # type: ignore[misc]
    """The chance that the next sample is right after failures that were long or short, sure or unsure, alike or not.

    It starts at the prior's own rate and moves its log-odds by what the failures show: a prior that is right already
    costs nothing.
    """

    def __init__(self, *, l2: float = 1e-3) -> None:
        self.l2 = l2

    def fit(self, beliefs: Beliefs, evidence: Evidence, right: Floats, weights: Floats) -> Self:
        """`right` is how often the next sample was right after each case of `evidence`, one row per case."""
        prior = logit(beliefs.rate)
        known = evidence.logprob_known > 0
        self.logprob_ = float((evidence.logprob[known] / evidence.logprob_known[known]).mean()) if known.any() else 0.0
        shown = self._shown(beliefs, evidence)
        concentration, failures = beliefs.concentration, evidence.failures

        def loss(theta: Floats) -> float:
            chance = _after(theta, prior, concentration, shown, failures)
            return _log_loss(chance, right, weights) + self.l2 * float((theta**2).sum())

        self.theta_ = minimize(loss, np.zeros(shown.shape[-1] + 1), method="L-BFGS-B").x
        return self

    def predict(self, beliefs: Beliefs, evidence: Evidence) -> Floats:
        """One chance per cell of `evidence`, whose first axis is that of `beliefs`."""
        axes = (1,) * (evidence.samples.ndim - 1)
        prior, concentration = (x.reshape(x.shape + axes) for x in (logit(beliefs.rate), beliefs.concentration))
        return _after(self.theta_, prior, concentration, self._shown(beliefs, evidence), evidence.failures)

    def _shown(self, beliefs: Beliefs, evidence: Evidence) -> Floats:
        """What the samples show, weighed by how many there are; 0 where there is none."""
        return show(beliefs, evidence, self.logprob_)


def show(beliefs: Beliefs, evidence: Evidence, logprob_usual: float) -> Floats:
    """Means over the samples so far, each a feature of about unit size, drawn to 0 where samples are few."""
    drawn = evidence.samples
    many = np.maximum(drawn, 1)
    weight = drawn / (drawn + 1)
    usual = beliefs.tokens_mean.reshape(beliefs.tokens_mean.shape + (1,) * (drawn.ndim - 1))
    length = np.where(drawn > 0, np.log(np.maximum(evidence.tokens / many, 1) / np.maximum(usual, 1)), 0.0)
    sure = np.where(
        evidence.logprob_known > 0, evidence.logprob / np.maximum(evidence.logprob_known, 1) - logprob_usual, 0.0
    )
    votes = np.maximum(drawn - evidence.unreadable, 1)
    shares = (
        evidence.truncated / many,
        evidence.unreadable / many,
        evidence.leader / votes,
        evidence.distinct / votes,
    )
    shown = (3 * np.clip(length, -1, 1), 5 * np.clip(sure, -1, 1), *shares)
    return np.stack([weight * one for one in shown], axis=-1)


def _beta(theta: Floats, x: Floats) -> tuple[Floats, Floats]:
    mean = expit(theta[0] + theta[1] * x)
    return mean, np.exp(np.clip(theta[2] + theta[3] * x, *CONCENTRATION_LOG))


def _after(theta: Floats, prior: Floats, concentration: Floats, shown: Floats, failures: Floats) -> Floats:
    worth = concentration * np.exp(np.clip(theta[0], -2, 2))
    return np.asarray(expit(prior + shown @ theta[1:]) * worth / (worth + failures))


def _log_loss(chance: Floats, right: Floats, weights: Floats) -> float:
    kept = np.clip(chance, SURE_MIN, 1 - SURE_MIN)
    return float(-(weights * (right * np.log(kept) + (1 - right) * np.log(1 - kept))).sum() / weights.sum())


class LeaderRight(BaseEstimator):  # type: ignore[misc]
    """The chance that the most frequent answer is right: a logistic regression on prior, votes and samples."""

    def __init__(self, *, C: float = 1.0) -> None:  # noqa: N803
        self.C = C

    def fit(self, beliefs: Beliefs, evidence: Evidence, right: Floats, logprob_usual: float) -> Self:
        """`right` is whether the leader was right in each case of `evidence`, one row per case."""
        self.logprob_ = logprob_usual
        x = self._features(beliefs, evidence)
        labels = right > 0.5
        self.model_ = None
        self.rate_ = float((labels.sum() + 0.5) / (len(labels) + 1))
        if 0 < labels.sum() < len(labels):
            self.model_ = LogisticRegression(C=self.C, max_iter=1000).fit(x, labels)
        return self

    def predict(self, beliefs: Beliefs, evidence: Evidence) -> Floats:
        """One chance per cell of `evidence`; 0 where nobody has voted."""
        x = self._features(beliefs, evidence)
        if self.model_ is None:
            chance = np.full(x.shape[:-1], self.rate_)
        else:
            chance = self.model_.predict_proba(x.reshape(-1, x.shape[-1]))[:, 1].reshape(x.shape[:-1])
        return np.where(evidence.leader > 0, chance, 0.0)

    def _features(self, beliefs: Beliefs, evidence: Evidence) -> Floats:
        prior = logit(beliefs.rate).reshape(beliefs.rate.shape + (1,) * (evidence.samples.ndim - 1))
        drawn = np.maximum(evidence.samples, 1)
        share = evidence.leader / drawn
        lead = (evidence.leader - evidence.runner_up) / np.sqrt(evidence.leader + evidence.runner_up + 1)
        votes = (np.broadcast_to(prior, drawn.shape), np.log(drawn), share, lead, evidence.runner_up / drawn, share**2)
        return np.concatenate([np.stack(votes, axis=-1), show(beliefs, evidence, self.logprob_)], axis=-1)
