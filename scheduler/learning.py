"""What is learned from, and what learns: examples out of the ledger, and the estimators that are fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from scheduler.core.beliefs import Floats
from scheduler.prediction import Predictor
from scheduler.priors import PlainPriors, groups_of
from scheduler.types import Lessons, Prediction, Query


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One sample of a settled query, in the order in which it was drawn; `right` is None where nobody knows."""

    tokens: int
    right: bool | None
    answer: str | None = None
    logprob_mean: float | None = None
    truncated: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One settled query: what was asked, and what its samples showed; of one of them at least it is known.

    `believed` is what the plan that drew the samples believed, by the predictor it names. `explored` says that the lot
    gave it the plain budget, `judged_early` that a verdict could end it before its votes did. `settled_at` is when the
    query ended.
    """

    query: Query
    drawn: tuple[Drawn, ...]
    believed: Prediction
    explored: bool = False
    judged_early: bool = True
    settled_at: datetime | None = None

    @property
    def judged(self) -> int:
        """Samples that are known to be right or wrong."""
        return sum(sample.right is not None for sample in self.drawn)

    @property
    def right(self) -> int:
        """Samples that are known to be right."""
        return sum(sample.right is True for sample in self.drawn)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The lengths of all samples."""
        return tuple(sample.tokens for sample in self.drawn)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Past:
    """T queries of one model: what was believed of each by a predictor that had not seen it, and what it then showed.

    All arrays are (T,): the Beta's `alpha` and `beta`, `tokens_mean`, and how many of `judged` samples were `right`.
    """

    alpha: Floats
    beta: Floats
    tokens_mean: Floats
    right: Floats
    judged: Floats


@runtime_checkable
class Remembers(Protocol):
    """A predictor that keeps earlier queries one by one."""

    def past(self, model: str) -> Past | None:
        """What earlier queries of a model showed; None where it remembers none."""
        ...


class Learned(Predictor, Protocol):
    """A predictor that can be kept in a file."""

    kind: str

    def content(self) -> Mapping[str, Any]:
        """What the file holds: plain values, arrays and estimators, its `kind` and `version` among them."""
        ...

    def lessons(self) -> Mapping[str, Lessons]:
        """By model, what its samples say beyond their number; workers weigh evidence with it."""
        ...

    def about(self) -> Mapping[str, Any]:
        """What its card says of how it predicts."""
        ...


class Learner(Protocol):
    """Fits a predictor to examples."""

    def fit(self, examples: Sequence[Example], version: str) -> Learned:
        """The fitted predictor."""
        ...


class GroupLearner:
    """Counts by model, task and tenant, and looks at no text."""

    def fit(self, examples: Sequence[Example], version: str) -> Learned:
        """Plain priors as the examples leave them."""
        return plain_priors(examples).frozen(version)


def plain_priors(examples: Sequence[Example]) -> PlainPriors:
    """Plain priors that have seen nothing but these examples: the rule that a challenger has to beat."""
    plain = PlainPriors()
    for example in examples:
        query = example.query
        groups = groups_of(query.model, query.task, query.tenant_id)
        plain.add(query.id, groups, tokens=example.tokens, right=example.right, judged=example.judged)
    return plain
