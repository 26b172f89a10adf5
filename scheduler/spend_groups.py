"""One line of a spend report: what is counted of a group of queries, and what follows from the counts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(kw_only=True, slots=True)
class SpendGroup:
    """One line of a report.

    key: the tenant's name, the model, the strategy of the query's latest plan (as asked, where none was made), the
        task, the day or the batch; None where there is none. Queries sent one by one share the batch key "interactive".
    queries: queries that ended, `outcomes` by how.
    labelled, correct: those whose answer is known to be right or wrong, and the right ones.
    samples: samples drawn for them, discarded ones too.
    prompt_tokens .. reasoning_tokens: as billed; `completion_tokens` includes reasoning.
    discarded_tokens: completion tokens of the ended queries' samples that were not chosen.
    cost_nanousd: the sum of the ledger's entries.
    own_queries, own_samples: the queries that ended with an outcome of their own (answered, stopped by their budget or
        abandoned, not failed or called off with their batch), and their samples.
    own_cost_nanousd: what those cost over their whole life, the measure of the saving.
    uniform_cost_nanousd: what those would have cost if every query of a batch had been given the largest sample budget
        planned in that batch, at that query's mean cost per sample.
    """

    key: str | None
    outcomes: Counter[str] = field(default_factory=Counter)
    labelled: int = 0
    correct: int = 0
    samples: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    discarded_tokens: int = 0
    cost_nanousd: int = 0
    own_queries: int = 0
    own_samples: int = 0
    own_cost_nanousd: int = 0
    uniform_cost_nanousd: int = 0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_errors: array[float] = field(default_factory=lambda: array("d"))

    @property
    def queries(self) -> int:
        """Queries that ended."""
        return self.outcomes.total()

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among those that are labelled."""
        return _ratio(self.correct, self.labelled)

    @property
    def samples_per_query(self) -> float | None:
        """Samples drawn per query that ended with an outcome of its own."""
        return _ratio(self.own_samples, self.own_queries)

    @property
    def cost_per_correct_nanousd(self) -> int | None:
        """What one right answer cost, all that was spent on wrong ones included."""
        return round(self.cost_nanousd / self.correct) if self.correct else None

    @property
    def saving_ratio(self) -> float | None:
        """How many times dearer the uniform budget would have been."""
        return _ratio(self.uniform_cost_nanousd, self.own_cost_nanousd)

    @property
    def latency_p50_s(self) -> float | None:
        """The median time from a query's start (its first wave, not its arrival) to its end."""
        return _quantile(self.latencies_s, 0.5)

    @property
    def latency_p95_s(self) -> float | None:
        """The time from start to end that 95 in 100 queries stayed within."""
        return _quantile(self.latencies_s, 0.95)

    @property
    def prompt_estimate_error(self) -> float | None:
        """The median over waves of |prompt tokens estimated - billed| / billed."""
        return _quantile(self.prompt_errors, 0.5)

    def add(self, other: SpendGroup) -> None:
        """Count another group's queries and money in, too."""
        self.outcomes.update(other.outcomes)
        self.latencies_s.extend(other.latencies_s)
        self.prompt_errors.extend(other.prompt_errors)
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_SUMMED = (
    "labelled",
    "correct",
    "samples",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "discarded_tokens",
    "cost_nanousd",
    "own_queries",
    "own_samples",
    "own_cost_nanousd",
    "uniform_cost_nanousd",
)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _quantile(values: Sequence[float], q: float) -> float | None:
    return float(np.quantile(np.frombuffer(values, dtype=np.float64), q)) if len(values) else None  # type: ignore[call-overload]
