"""How good predicted rates are: log loss, Brier score, reliability and rank order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Of predicted rates on judged samples. Lower is better, but for `correlation` with the queries' own rates.

    `calibration_error` is the mean distance between what was predicted and what happened, over tenths of the queries.
    """

    log_loss: float
    brier: float
    calibration_error: float
    correlation: float


def score(rates: Floats, right: Floats, drawn: NDArray[np.int64]) -> Scores:
    """Scores per sample: each query counts with the samples that it has."""
    kept = np.clip(rates, 1e-6, 1 - 1e-6)
    share = right / drawn
    weights = drawn / drawn.sum()
    spread = rates.std() > 0 and share.std() > 0
    return Scores(
        log_loss=float(-(weights * (share * np.log(kept) + (1 - share) * np.log(1 - kept))).sum()),
        brier=float((weights * (share * (1 - rates) ** 2 + (1 - share) * rates**2)).sum()),
        calibration_error=float(sum(abs(said - was) * part for said, was, part in reliability(rates, right, drawn))),
        correlation=float(np.corrcoef(rates, share)[0, 1]) if spread else 0.0,
    )


def reliability(rates: Floats, right: Floats, drawn: NDArray[np.int64]) -> list[tuple[float, float, float]]:
    """(predicted, happened, share of all samples) of queries in tenths, from the lowest predicted rates up."""
    bins = [rows for rows in np.array_split(np.argsort(rates, kind="stable"), BINS) if len(rows)]
    return [
        (
            float(np.average(rates[rows], weights=drawn[rows])),
            float(right[rows].sum() / drawn[rows].sum()),
            float(drawn[rows].sum() / drawn.sum()),
        )
        for rows in bins
    ]
