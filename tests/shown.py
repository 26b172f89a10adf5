"""What samples show whose answers are codes of tests: their length, how sure they were, whether they were cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scheduler.core.said import FEATURES, LENGTH_USUAL


def shown_by(
    tokens: NDArray[np.int64], logprob: NDArray[np.float64], truncated: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(..., FEATURES) of arrays (...)."""
    shown = np.zeros((*tokens.shape, len(FEATURES)))
    shown[..., FEATURES.index("length")] = np.log(np.maximum(tokens, 1) / LENGTH_USUAL)
    shown[..., FEATURES.index("log-probability")] = np.nan_to_num(logprob)
    shown[..., FEATURES.index("cut")] = truncated
    return shown
