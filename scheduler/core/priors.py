"""What counts say of success rates: a Beta prior per group, drawn towards that of the larger group it belongs to.

Counts come from samples that stop at the first right answer, so a plain share of right samples would be too low. The
likelihood of a query's counts is the same whatever ended it, so the Beta is fitted by that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints

MEANS = np.linspace(0.01, 0.99, 50)
CONCENTRATIONS = 2.0 ** np.arange(-2.0, 4.5, 0.5)[:, None]
"""Round 2, that of the uniform prior, which is what is believed where nothing was seen."""
PARENT_QUERIES = 8.0
"""How many queries of its own a group needs to outweigh the larger group's mean."""
SPREAD = 1.5
"""How far (in doublings) a group's concentration may lie from the larger group's, before its counts are heard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BetaPrior:
    """A Beta distribution of the chance that one sample is right, over the queries of a group."""

    mean: float
    concentration: float

    @property
    def alpha(self) -> float:
        """Its first parameter."""
        return self.mean * self.concentration

    @property
    def beta(self) -> float:
        """Its second parameter."""
        return (1 - self.mean) * self.concentration


UNIFORM = BetaPrior(mean=0.5, concentration=2.0)


def fit_beta(right: Ints, drawn: Ints, parent: BetaPrior | None = None) -> BetaPrior:
    """The posterior mean of a group's Beta, given the right and all samples of each of its queries.

    Without a parent every mean is as likely as any other, so that a first query moves much and a hundredth little.
    """
    if not len(drawn):
        return parent or UNIFORM
    counts, weights = np.unique(np.stack([right, drawn - right]), axis=1, return_counts=True)
    alpha, beta = MEANS * CONCENTRATIONS, (1 - MEANS) * CONCENTRATIONS
    likelihood = np.zeros(alpha.shape)
    rising_alpha, rising_beta = _log_rising(alpha, int(counts[0].max())), _log_rising(beta, int(counts[1].max()))
    rising_both = _log_rising(alpha + beta, int(counts.sum(axis=0).max()))
    for (good, bad), weight in zip(counts.T, weights, strict=True):
        likelihood += weight * (rising_alpha[good] + rising_beta[bad] - rising_both[good + bad])
    weighed = likelihood + _log_prior(parent)
    chance = np.exp(weighed - weighed.max())
    chance /= chance.sum()
    return BetaPrior(
        mean=float((chance * MEANS).sum()),
        concentration=float(2.0 ** (chance * np.log2(CONCENTRATIONS)).sum()),
    )


def _log_prior(parent: BetaPrior | None) -> Floats:
    centre = parent.concentration if parent is not None else UNIFORM.concentration
    of_concentration = -0.5 * ((np.log2(CONCENTRATIONS) - np.log2(centre)) / SPREAD) ** 2
    if parent is None:
        return np.broadcast_to(of_concentration, (len(CONCENTRATIONS), len(MEANS)))
    of_mean = PARENT_QUERIES * (parent.mean * np.log(MEANS) + (1 - parent.mean) * np.log(1 - MEANS))
    return np.asarray(of_concentration + of_mean)


def _log_rising(values: Floats, most: int) -> Floats:
    """log(x (x + 1) ... (x + k - 1)) for k = 0..most, along a new first axis."""
    factors = np.log(values[None] + np.arange(most)[:, None, None])
    return np.concatenate([np.zeros((1, *values.shape)), np.cumsum(factors, axis=0)])
