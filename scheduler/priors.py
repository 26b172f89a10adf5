"""Plain priors: what is believed of a query by nothing but how its model, task and tenant have fared so far."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import QueryRow, SampleRow, Wave
from scheduler.core.priors import UNIFORM, BetaPrior, fit_beta
from scheduler.prediction import FIXED_TOKENS_P50, FIXED_TOKENS_P90
from scheduler.states import USABLE
from scheduler.types import Arm, Lessons, Prediction, Query

PLAIN = "plain-priors-1"
"""The version that plans made with them name."""
QUERIES_KEPT = 1000
"""Queries that a group remembers: enough for a rate to two digits, few enough to follow one that changes."""
LENGTHS_KEPT = 500
LENGTHS_MIN = 20
"""Completions of its own that a group needs before they say more of its lengths than the larger group's."""
GROUPS_MAX = 4096
SAMPLES_AT_ONCE = 2000
SAMPLES_AT_START = 20_000
"""How far back a daemon looks that has just begun to lead."""

Group = tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Completion lengths in tokens."""

    mean: float
    p50: int
    p90: int


UNKNOWN_LENGTHS = Lengths(mean=float(FIXED_TOKENS_P50), p50=FIXED_TOKENS_P50, p90=FIXED_TOKENS_P90)


def groups_of(model: str, task: str | None, tenant_id: str | None) -> tuple[Group, ...]:
    """The groups a query belongs to, the largest first."""
    return ((model,), (model, task), (model, task, tenant_id))


@dataclass(slots=True)
class _Counts:
    """What one group has seen: right and all judged samples by query, and the last lengths."""

    judged: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=LENGTHS_KEPT))

    def add(self, query_id: int, tokens: Sequence[int], right: int, judged: int) -> None:
        self.lengths.extend(tokens)
        if not judged:
            return
        before = self.judged.get(query_id, (0, 0))
        self.judged[query_id] = (before[0] + right, before[1] + judged)
        if len(self.judged) > QUERIES_KEPT:
            self.judged.popitem(last=False)


class PlainPriors:
    """A Beta and length quantiles per model, task and tenant, each drawn towards the larger group's where data is thin.

    The rule that a learned predictor has to beat, and what the daemon plans with where there is none. It knows nothing
    at first, and a good deal after a hundred queries.
    """

    version = PLAIN

    def __init__(self) -> None:
        self._groups: OrderedDict[Group, _Counts] = OrderedDict()
        self._fitted: dict[Group, tuple[BetaPrior, Lengths]] = {}
        self._last_sample_id = 0

    def add(
        self,
        query_id: int,
        groups: Sequence[Group],
        *,
        tokens: Sequence[int],
        right: int = 0,
        judged: int = 0,
    ) -> None:
        """Count samples of a query in: their lengths, and of those that were judged, how many were right."""
        for group in groups:
            self._groups.setdefault(group, _Counts()).add(query_id, tokens, right, judged)
            self._fitted.pop(group, None)
        while len(self._groups) > GROUPS_MAX:
            self._groups.popitem(last=False)

    def read_on(self, session: Session) -> int:
        """Count in what was sampled since the last look; returns how many samples that were."""
        newest = session.scalar(select(func.max(SampleRow.id))) or 0
        self._last_sample_id = max(self._last_sample_id, newest - SAMPLES_AT_START)  # who slept long skips what is old
        rows = session.execute(
            select(
                SampleRow.id,
                SampleRow.query_id,
                SampleRow.tokens,
                SampleRow.correct,
                Wave.model,
                QueryRow.task,
                QueryRow.tenant_id,
            )
            .join(QueryRow, QueryRow.id == SampleRow.query_id)
            .join(Wave, Wave.id == SampleRow.wave_id)
            .where(SampleRow.id > self._last_sample_id, SampleRow.finish_reason.in_(USABLE))
            .order_by(SampleRow.id)
            .limit(SAMPLES_AT_ONCE)
        ).all()
        for row in rows:
            groups = groups_of(str(row.model), row.task, row.tenant_id)
            judged = int(row.correct is not None)
            self.add(row.query_id, groups, tokens=[row.tokens], right=int(row.correct is True), judged=judged)
        if rows:
            self._last_sample_id = rows[-1].id
            self._fitted.clear()
        return len(rows)

    def predict(self, queries: Sequence[Query], _arms: Sequence[Arm]) -> list[Prediction]:
        """The prior of each query's group."""
        return [self._predict(groups_of(query.model, query.task, query.tenant_id)) for query in queries]

    def frozen(self, version: str) -> FrozenPriors:
        """The priors of every group as they stand, as a predictor that learns no more."""
        smallest_last = sorted(self._groups, key=lambda group: (len(group), [part or "" for part in group]))
        return FrozenPriors(version, {group: self._fit(group) for group in smallest_last})

    def _predict(self, groups: Sequence[Group]) -> Prediction:
        beta, lengths = self._fit(groups[-1])
        return as_prediction(beta, lengths, self.version)

    def _fit(self, group: Group) -> tuple[BetaPrior, Lengths]:
        """What is believed of a group; of one that nothing was seen of, what is believed of the larger group."""
        if not group:
            return UNIFORM, UNKNOWN_LENGTHS
        if group in self._fitted:
            return self._fitted[group]
        beta, lengths = self._fit(group[:-1])
        counts = self._groups.get(group)
        if counts is not None:
            parent = beta if len(group) > 1 else None
            beta, lengths = self._fitted[group] = (_beta(counts, parent), _lengths(counts, lengths))
        return beta, lengths


class FrozenPriors:
    """Plain priors as they were at one time: what a fitted predictor is where no query's text is looked at."""

    kind = "groups"

    def __init__(self, version: str, groups: Mapping[Group, tuple[BetaPrior, Lengths]]) -> None:
        self.version = version
        self._groups = dict(groups)

    def predict(self, queries: Sequence[Query], _arms: Sequence[Arm]) -> list[Prediction]:
        """The prior of the smallest group that was known."""
        found = []
        for query in queries:
            group = groups_of(query.model, query.task, query.tenant_id)[-1]
            while group and group not in self._groups:
                group = group[:-1]
            found.append(as_prediction(*self._groups.get(group, (UNIFORM, UNKNOWN_LENGTHS)), self.version))
        return found

    def content(self) -> dict[str, Any]:
        """Plain values that a file can hold."""
        rows = [
            [list(group), beta.mean, beta.concentration, lengths.mean, lengths.p50, lengths.p90]
            for group, (beta, lengths) in self._groups.items()
        ]
        return {"kind": self.kind, "version": self.version, "groups": rows}

    def lessons(self) -> dict[str, Lessons]:
        """None: samples are counted."""
        return {}

    def about(self) -> dict[str, Any]:
        """How many groups it tells apart."""
        return {"groups": len(self._groups)}

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> Self:
        """From those values."""
        groups = {
            tuple(group): (
                BetaPrior(mean=mean, concentration=concentration),
                Lengths(mean=tokens_mean, p50=p50, p90=p90),
            )
            for group, mean, concentration, tokens_mean, p50, p90 in content["groups"]
        }
        return cls(str(content["version"]), groups)


def as_prediction(beta: BetaPrior, lengths: Lengths, version: str) -> Prediction:
    """A group's prior as the prediction for one of its queries."""
    return Prediction(
        alpha=beta.alpha,
        beta=beta.beta,
        tokens_p50=lengths.p50,
        tokens_p90=lengths.p90,
        tokens_mean=lengths.mean,
        version=version,
    )


def _beta(counts: _Counts, parent: BetaPrior | None) -> BetaPrior:
    if not counts.judged:
        return parent or UNIFORM
    right, drawn = np.array(list(counts.judged.values()), np.int64).T
    return fit_beta(right, drawn, parent)


def _lengths(counts: _Counts, parent: Lengths) -> Lengths:
    if len(counts.lengths) < LENGTHS_MIN:
        return parent
    tokens = np.array(counts.lengths)
    p50, p90 = (max(1, int(quantile)) for quantile in np.quantile(tokens, (0.5, 0.9)))
    return Lengths(mean=float(tokens.mean()), p50=p50, p90=p90)
