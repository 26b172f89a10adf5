"""Queries whose true success rates are known: the probe shows them through noise, and so do lengths and sureness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.learned.facts import Examples, Facts
from scheduler.core.evidence import Samples
from tests.shown import shown_by

SAMPLES = 12


def synthetic(queries: int, seed: int) -> tuple[Examples, NDArray[np.float64]]:
    """Examples, and each query's true rate."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(queries, 8))
    direction = np.linspace(1, -1, 8)
    rates = 1 / (1 + np.exp(0.5 - 1.2 * hidden @ direction / 1.8 - rng.normal(0, 0.5, queries)))
    right = rng.random((queries, SAMPLES)) < rates[:, None]
    wrong_answers = rng.integers(1, 6, right.shape)
    usual = 60 * np.exp(0.4 * hidden[:, 0])
    tokens = np.maximum(usual[:, None] * rng.lognormal(0, 0.3, right.shape), 1).astype(np.int64)
    logprob, truncated = np.where(right, -0.2, -0.3) + rng.normal(0, 0.05, right.shape), np.zeros(right.shape, bool)
    samples = Samples(
        answers=np.where(right, 0, wrong_answers),
        tokens=tokens,
        logprob=logprob,
        truncated=truncated,
        said=shown_by(tokens, logprob, truncated),
        accepted=right,
    )
    facts = tuple(map(_facts, hidden))
    return Examples(facts=facts, samples=samples, samples_max=np.full(queries, SAMPLES)), rates


def _facts(hidden: NDArray[np.float64]) -> Facts:
    probe = hidden.astype(np.float32)
    return Facts(text="How much is 12 + 9?", prompt_tokens=30, task="sums", tenant="research", probe=probe)
