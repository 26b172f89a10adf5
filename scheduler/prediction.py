"""What is believed of a query before anything is spent: a prior per query and arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scheduler.types import Arm, Prediction, Query

FIXED_ALPHA = FIXED_BETA = 1.0
"""The uniform prior: every success rate is as likely as any other."""

FIXED_TOKENS_P50, FIXED_TOKENS_P90 = 120, 256
"""Completion lengths of a 0.5B model on short graded tasks (pool rg-qwen05b): half are under 120 tokens, nine in ten
under 256, where its recording was cut."""


class Predictor(Protocol):
    """Predicts each query under each arm."""

    @property
    def version(self) -> str:
        """What plans made with it name."""
        ...

    def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
        """One prediction for each pair of `queries` and `arms` (equally long), in order."""
        ...


class FixedPriors:
    """Believes the same of every query: the rule that a learned predictor has to beat."""

    version = "fixed-priors-1"

    def predict(self, queries: Sequence[Query], _arms: Sequence[Arm]) -> list[Prediction]:
        """The uniform prior and the fixed length quantiles for every query."""
        prediction = Prediction(
            alpha=FIXED_ALPHA,
            beta=FIXED_BETA,
            tokens_p50=FIXED_TOKENS_P50,
            tokens_p90=FIXED_TOKENS_P90,
            version=self.version,
        )
        return [prediction] * len(queries)
