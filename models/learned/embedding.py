"""Static embeddings of texts from a small packaged model, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

PACKAGE = "static_model"


@cache
def can_embed() -> bool:
    """Whether the package with the model is installed (`pip install allotd[embedding]`)."""
    return find_spec(PACKAGE) is not None


def embed(texts: Sequence[str]) -> NDArray[np.float64]:
    """One row of 64 numbers per text."""
    from static_model import get_embeddings  # noqa: PLC0415 (optional, and slow to import)

    return np.asarray(get_embeddings(list(texts)), np.float64)
