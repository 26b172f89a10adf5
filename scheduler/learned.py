"""The predictor that reads: a `DifficultyPredictor` per model, and plain priors for models it has seen little of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import numpy as np

from models.learned.facts import Examples, Facts
from models.learned.predictor import EXAMPLES_MIN, DifficultyPredictor
from scheduler.core.beliefs import Beliefs, Floats
from scheduler.core.evidence import NO_ANSWER, Samples
from scheduler.core.said import said
from scheduler.learning import Drawn, Example, Learned, Past, plain_priors
from scheduler.priors import FrozenPriors
from scheduler.types import Arm, Lessons, Prediction, Query

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
        models, pasts = {}, {}
        for model, mine in by_model.items():
            if len(mine) >= EXAMPLES_MIN:
                models[model] = DifficultyPredictor()
                pasts[model] = _past(models[model].fit_beliefs(as_examples(mine)), mine)
        return TextPredictor(version, models, plain_priors(examples).frozen(version), pasts)


class TextPredictor:
    """Predicts with the estimator of each query's model; with plain priors where there is none."""

    kind = "text"

    def __init__(
        self,
        version: str,
        models: Mapping[str, DifficultyPredictor],
        others: FrozenPriors,
        pasts: Mapping[str, Past],
    ) -> None:
        self.version = version
        self._models = dict(models)
        self._others = others
        self._pasts = dict(pasts)

    def predict(self, queries: Sequence[Query], arms: Sequence[Arm]) -> list[Prediction]:
        """One prediction per pair of `queries` and `arms`, in order."""
        found = self._others.predict(queries, arms)
        for model, predictor in self._models.items():
            rows = [row for row, arm in enumerate(arms) if arm.model == model]
            beliefs = predictor.beliefs([as_facts(queries[row]) for row in rows])
            for at, row in enumerate(rows):
                found[row] = _as_prediction(beliefs, at, self.version)
        return found

    def past(self, model: str) -> Past | None:
        """What earlier queries of a model showed."""
        return self._pasts.get(model)

    def lessons(self) -> dict[str, Lessons]:
        """By model, what its samples say beyond their number."""
        return {model: predictor.lessons for model, predictor in self._models.items()}

    def content(self) -> dict[str, Any]:
        """Plain values, arrays and estimators that a file can hold."""
        return {
            "kind": self.kind,
            "version": self.version,
            "models": self._models,
            "others": self._others.content(),
            "pasts": {model: asdict(past) for model, past in self._pasts.items()},
        }

    def about(self) -> dict[str, Any]:
        """Of each model: whether the text said anything, and whether the probe and embeddings could be used."""
        return {
            "models": {
                name: {
                    "uses_text": model.uses_features_,
                    "uses_evidence": model.uses_evidence_,
                    "weighs_votes": bool(model.lessons.voting),
                    "uses_probe": model.featuriser_.with_probe,
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
        if not all(isinstance(model, DifficultyPredictor) for model in models.values()):
            raise ValueError("it holds a model that is not ours")
        pasts = {model: Past(**past) for model, past in content.get("pasts", {}).items()}
        return cls(str(content["version"]), models, FrozenPriors.restored(content["others"]), pasts)


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
    return Facts(text=query.text, prompt_tokens=query.prompt_tokens, task=query.task, tenant=query.tenant_id)


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
