"""The predictor that reads: a `DifficultyPredictor` per model, and plain priors for models it has seen little of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from models.learned.facts import Examples, Facts
from models.learned.predictor import EXAMPLES_MIN, DifficultyPredictor, are_better
from scheduler.core.beliefs import Beliefs, Floats
from scheduler.core.evidence import NO_ANSWER, Samples
from scheduler.core.said import said
from scheduler.learning import Drawn, Example, Learned, Past, plain_priors
from scheduler.priors import FrozenPriors
from scheduler.probes import PROBE_TYPE
from scheduler.types import Arm, Lessons, Prediction, Probe, Query

View = tuple[str, int]
"""A probe's view, and how many bytes its vectors have: a server may be exchanged for another under the same name."""
NO_VIEW: View = ("", 0)
PAST_MAX = 500
"""Earlier queries that a predictor remembers one by one."""


class TextLearner:
    """Learns from each model's queries what their text says of how hard they are and how long their answers get."""

    def fit(self, examples: Sequence[Example], version: str) -> Learned:
        """The fitted predictor."""
        by_model: dict[str, list[Example]] = defaultdict(list)
        for example in examples:
            if example.judged:
                by_model[example.query.model].append(example)
        models, probed, pasts = {}, {}, {}
        for model, mine in by_model.items():
            if len(mine) < EXAMPLES_MIN:
                continue
            models[model] = DifficultyPredictor(with_probe=False)
            pasts[model] = _past(models[model].fit_beliefs(as_examples(mine)), mine)
            if (better := _sighted(mine, models[model].losses_)) is not None:
                probed[model], pasts[model] = better
        return TextPredictor(version, models, plain_priors(examples).frozen(version), pasts, probed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighted:
    """A predictor of queries that have a probe of one view."""

    view: View
    predictor: DifficultyPredictor


class TextPredictor:
    """Predicts with the estimator of each query's model; with plain priors where there is none.

    A model may have another one, for queries with a probe.
    """

    kind = "text"

    def __init__(
        self,
        version: str,
        models: Mapping[str, DifficultyPredictor],
        others: FrozenPriors,
        pasts: Mapping[str, Past],
        probed: Mapping[str, Sighted] = MappingProxyType({}),
    ) -> None:
        self.version = version
        self._models = dict(models)
        self._others = others
        self._pasts = dict(pasts)
        self._probed = dict(probed)

    def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
        """One prediction per pair of `queries` and `arms`, in order."""
        found = self._others.predict(queries, arms)
        for model, predictor in self._models.items():
            rows = [row for row, arm in enumerate(arms) if arm.model == model]
            sighted = self._probed.get(model)
            seen = [row for row in rows if sighted is not None and _is_of(queries[row], sighted.view)]
            unseen = sorted(set(rows) - set(seen))
            for reader, some in ((predictor, unseen), (sighted.predictor if sighted else predictor, seen)):
                beliefs = reader.beliefs([as_facts(queries[row]) for row in some])
                for at, row in enumerate(some):
                    found[row] = _as_prediction(beliefs, at, self.version)
        return found

    def past(self, model: str) -> Past | None:
        """What earlier queries of a model showed."""
        return self._pasts.get(model)

    def lessons(self) -> dict[str, Lessons]:
        """By model, what its samples say beyond their number."""
        return {model: self._main(model).lessons for model in self._models}

    def content(self) -> dict[str, Any]:
        """Plain values, arrays and estimators that a file can hold."""
        return {
            "kind": self.kind,
            "version": self.version,
            "models": self._models,
            "others": self._others.content(),
            "pasts": {model: asdict(past) for model, past in self._pasts.items()},
            "probed": {model: (*sighted.view, sighted.predictor) for model, sighted in self._probed.items()},
        }

    def about(self) -> dict[str, Any]:
        """Of each model: whether the text said anything, which probe did, and whether embeddings could be used."""
        return {
            "models": {
                name: {
                    "uses_text": model.uses_features_,
                    "uses_evidence": self._main(name).uses_evidence_,
                    "weighs_votes": bool(self._main(name).lessons.voting),
                    "uses_probe": self._probed[name].view[0] if name in self._probed else None,
                    "uses_embedding": model.featuriser_.with_embedding,
                    "tasks": len(model.featuriser_.tasks_),
                }
                for name, model in self._models.items()
            },
            "groups": self._others.about()["groups"],
            "remembers": sorted(self._pasts),
        }

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> Self:
        """From those values. Raises ValueError where one of the models is none."""
        models = content["models"]
        probed = {
            model: Sighted(view=(view, width), predictor=predictor)
            for model, (view, width, predictor) in content.get("probed", {}).items()
        }
        held = [*models.values(), *(sighted.predictor for sighted in probed.values())]
        if not all(isinstance(model, DifficultyPredictor) for model in held):
            raise ValueError("it holds a model that is not ours")
        pasts = {model: Past(**past) for model, past in content.get("pasts", {}).items()}
        return cls(str(content["version"]), models, FrozenPriors.restored(content["others"]), pasts, probed)

    def _main(self, model: str) -> DifficultyPredictor:
        """The predictor of most queries of a model: where probes tell more, few have none."""
        return self._probed[model].predictor if model in self._probed else self._models[model]


def _sighted(examples: Sequence[Example], losses: Floats) -> tuple[Sighted, Past] | None:
    """A predictor of queries with the newest kind of probe, where those are predicted better than by `losses` (Q,)."""
    view = _newest_view(examples)
    rows = [row for row, example in enumerate(examples) if _is_of(example.query, view)]
    if len(rows) < EXAMPLES_MIN:
        return None
    some = [examples[row] for row in rows]
    sighted = Sighted(view=view, predictor=DifficultyPredictor())
    past = _past(sighted.predictor.fit_beliefs(as_examples(some)), some)
    helps = sighted.predictor.uses_features_ and are_better(sighted.predictor.losses_, losses[rows])
    return (sighted, past) if helps else None


def _newest_view(examples: Sequence[Example]) -> View:
    """The view of the newest probe among the examples; of none where there is no probe."""
    return next((_view(e.query.probe) for e in reversed(examples) if e.query.probe is not None), NO_VIEW)


def _view(probe: Probe) -> View:
    return probe.view, len(probe.vector)


def _is_of(query: Query, view: View) -> bool:
    """Whether a query has a probe of a view."""
    return query.probe is not None and _view(query.probe) == view


def _past(unseen: Beliefs, examples: Sequence[Example]) -> Past:
    """The newest of the examples."""
    kept = slice(-PAST_MAX, None)
    return Past(
        alpha=unseen.alpha[kept],
        beta=unseen.beta[kept],
        tokens_mean=unseen.tokens_mean[kept],
        right=np.array([example.right for example in examples], np.float64)[kept],
        judged=np.array([example.judged for example in examples], np.float64)[kept],
    )


def as_facts(query: Query) -> Facts:
    """What a predictor may know of a query before anything is spent."""
    return Facts(
        text=query.text,
        prompt_tokens=query.prompt_tokens,
        task=query.task,
        tenant=query.tenant_id,
        probe=None if query.probe is None else np.frombuffer(query.probe.vector, PROBE_TYPE),
    )


def as_examples(examples: Sequence[Example]) -> Examples:
    """Settled queries as a predictor sees them: their judged samples, in the order in which they were drawn."""
    rows = [[sample for sample in example.drawn if sample.right is not None] for example in examples]
    counts = np.array([len(row) for row in rows], np.int64)
    blank = Drawn(tokens=0, right=False)
    padded = [row + [blank] * (int(counts.max()) - len(row)) for row in rows]
    return Examples(
        facts=tuple(as_facts(example.query) for example in examples),
        samples=Samples(
            answers=np.array([_codes(row) for row in padded], np.int64),
            tokens=np.array([[sample.tokens for sample in row] for row in padded], np.int64),
            logprob=np.array([[_number(sample.logprob_mean) for sample in row] for row in padded]),
            truncated=np.array([[sample.truncated for sample in row] for row in padded]),
            accepted=np.array([[sample.right is True for sample in row] for row in padded]),
            said=np.stack([_said(e.query.text, row) for e, row in zip(examples, padded, strict=True)]),
        ),
        samples_max=counts,
        stopped=True,
        no_verdict=np.array([not example.judged_early for example in examples]),
    )


def _said(question: str, row: Sequence[Drawn]) -> Floats:
    return said(
        question,
        [one.answer for one in row],
        [one.tokens for one in row],
        [one.logprob_mean for one in row],
        [one.truncated for one in row],
    )


def _codes(row: Sequence[Drawn]) -> list[int]:
    """A number per distinct answer."""
    known: dict[str, int] = {}
    return [NO_ANSWER if one.answer is None else known.setdefault(one.answer, len(known)) for one in row]


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _as_prediction(beliefs: Beliefs, at: int, version: str) -> Prediction:
    quantiles = dict(zip(beliefs.levels, beliefs.tokens_quantiles[at], strict=True))
    return Prediction(
        alpha=float(beliefs.alpha[at]),
        beta=float(beliefs.beta[at]),
        tokens_p50=max(1, round(quantiles[0.5])),
        tokens_p90=max(1, round(quantiles[0.9])),
        tokens_mean=float(beliefs.tokens_mean[at]),
        version=version,
    )
