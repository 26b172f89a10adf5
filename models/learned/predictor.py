"""The predictor of one arm: beliefs from a query's facts, and lessons of what its samples show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import KFold

from models.learned.elections import VOTES_MIN, VoteWeights, hold_elections
from models.learned.embedding import can_embed
from models.learned.evidence import BetaScale, LeaderRight, NextRight, log_losses
from models.learned.facts import Examples, Facts
from models.learned.features import Featuriser
from models.learned.lengths import LengthRegressor
from models.learned.rates import FallbackRates, RateRegressor
from scheduler.core import judging
from scheduler.core.beliefs import TOKENS_LEVELS, Beliefs, Evidence
from scheduler.core.evidence import NO_ANSWER, Bools, Samples, see
from scheduler.core.lessons import leader_right, next_right
from scheduler.core.stopping import leader_holds
from scheduler.types import COUNTS_ONLY, Lessons

Floats = NDArray[np.float64]

FOLDS = 5
EXAMPLES_MIN = 20
"""With fewer queries than this the rates of tasks and tenants are all that is learned."""
ALL = slice(None)
ORDERS = 8
"""Random orders of each query's samples that teach what failures and votes say."""


class DifficultyPredictor(BaseEstimator):  # type: ignore[misc]
    """Learns from judged samples how hard queries are, and what samples say of it.

    What comes on top of the rates of tasks and tenants is used only where it predicted queries better that it had not
    seen: `uses_features_` says whether the text and the probe did, `uses_evidence_` whether what failures show did.
    `losses_` (Q,) are the log losses of its examples, each predicted by what the others taught.
    """

    def __init__(
        self, *, with_probe: bool = True, with_embedding: bool | None = None, folds: int = FOLDS, seed: int = 0
    ) -> None:
        self.with_probe = with_probe
        self.with_embedding = with_embedding
        self.folds = folds
        self.seed = seed

    def fit(self, examples: Examples) -> Self:
        """Learn from examples of one arm; there must be one at least. The probe is used where all of them have one."""
        self.fit_beliefs(examples)
        return self

    def fit_beliefs(self, examples: Examples) -> Beliefs:
        """Learn, and return what would be believed of each example by a predictor that had not seen it."""
        assert len(examples) > 0, "nothing to learn from"
        probed = self.with_probe and all(fact.probe is not None for fact in examples.facts)
        # beside a probe, embeddings made rates worse on the recorded pools; without one, better
        embeds = (can_embed() and not probed) if self.with_embedding is None else self.with_embedding
        self.featuriser_ = Featuriser(with_probe=probed, with_embedding=embeds).fit(examples.facts)
        x = self.featuriser_.transform(examples.facts)
        right, drawn = examples.right, examples.samples_max.astype(np.float64)
        self.fallback_ = FallbackRates().fit(examples.facts, right, drawn)
        self.lengths_ = LengthRegressor().fit(x, examples.samples.tokens, examples.real)
        cases = _Cases(examples, self.seed)
        rates = self._rates_unseen(examples, cases)
        self.rates_ = RateRegressor(seed=self.seed).fit(x, right, drawn) if self.uses_features_ else None
        return self._fit_evidence(examples, cases, rates)

    def beliefs(self, facts: Sequence[Facts]) -> Beliefs:
        """What to believe of queries before anything is spent."""
        if not facts:
            return Beliefs(
                alpha=np.zeros(0),
                beta=np.zeros(0),
                tokens_mean=np.zeros(0),
                tokens_quantiles=np.zeros((0, len(TOKENS_LEVELS))),
            )
        x = self.featuriser_.transform(facts)
        rates = self.fallback_.predict(facts) if self.rates_ is None else self.rates_.predict(x)
        return self._scaled(rates, self.lengths_.predict(x), self.lengths_.quantiles(x))

    @property
    def lessons(self) -> Lessons:
        """What samples say of whether the next one, or the leader of a vote, is right, and what votes weigh."""
        failing = self.next_right_.lessons if self.uses_evidence_ else Lessons(logprob_usual=self.next_right_.logprob_)
        leading = () if self.leader_right_ is None else self.leader_right_.lessons.leading
        return replace(failing, leading=leading, voting=self.voting_)

    def _scaled(self, rates: Floats, tokens_mean: Floats, quantiles: Floats) -> Beliefs:
        alpha, beta = self.scale_.transform(rates)
        return Beliefs(alpha=alpha, beta=beta, tokens_mean=tokens_mean, tokens_quantiles=quantiles)

    def _rates_unseen(self, examples: Examples, cases: _Cases) -> Floats:
        """What each example's rate would be believed to be without it: by its features, where they tell more than its
        task and tenant do.
        """
        right, drawn = examples.right, examples.samples_max.astype(np.float64)
        count = len(examples)
        plain, rich = np.zeros(count), np.zeros(count)
        for taught, left in self._splits(count):
            part = examples.take(taught)
            facts = [examples.facts[row] for row in left]
            plain[left] = FallbackRates().fit(part.facts, right[taught], drawn[taught]).predict(facts)
            if count >= EXAMPLES_MIN:
                featuriser = Featuriser(**self.featuriser_.get_params()).fit(part.facts)
                model = RateRegressor(seed=self.seed).fit(
                    featuriser.transform(part.facts), right[taught], drawn[taught]
                )
                rich[left] = model.predict(featuriser.transform(facts))
        self.losses_ = self._losses(plain, cases, examples)
        self.uses_features_ = False
        if count >= EXAMPLES_MIN:
            losses = self._losses(rich, cases, examples)
            if are_better(losses, self.losses_):
                self.losses_, self.uses_features_ = losses, True
        return rich if self.uses_features_ else plain

    def _losses(self, rates: Floats, cases: _Cases, examples: Examples) -> Floats:
        """The log loss of each example, by the Beta distribution that goes with its rate as others' rates teach it."""
        alpha, beta = np.zeros(len(rates)), np.zeros(len(rates))
        for taught, left in self._splits(len(rates)):
            alpha[left], beta[left] = cases.scale(rates, taught).transform(rates[left])
        right, judged = examples.right.astype(np.int64), examples.samples_max
        return judging.log_losses(judging.Judged(alpha=alpha, beta=beta, right=right, judged=judged))

    def _splits(self, count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        if count == 1:
            return [(np.zeros(1, np.int64), np.zeros(1, np.int64))]
        folds = KFold(min(self.folds, count), shuffle=True, random_state=self.seed)
        return [(np.asarray(taught), np.asarray(left)) for taught, left in folds.split(np.arange(count))]

    def _fit_evidence(self, examples: Examples, cases: _Cases, rates: Floats) -> Beliefs:
        """The concentration of the priors, and what samples show, learned on priors of queries they had not seen."""
        failed = cases.failed
        right, weights = cases.later[failed], cases.weights[failed]
        self.scale_ = cases.scale(rates)
        x = self.featuriser_.transform(examples.facts)
        beliefs = self._scaled(rates, self.lengths_.predict(x), self.lengths_.quantiles(x))
        rows = cases.rows[failed]
        evidence = cases.evidence.take(failed)
        self.next_right_ = NextRight().fit(beliefs.take(rows), evidence, right, weights)
        self.uses_evidence_ = self._evidence_helps(beliefs, rows, evidence, right, weights)
        self.leader_right_ = self._votes_lesson(beliefs, cases, examples.unjudged)
        self.voting_ = self._vote_weights(examples, cases)
        return beliefs

    def _evidence_helps(
        self, beliefs: Beliefs, rows: NDArray[np.int64], evidence: Evidence, right: Floats, weights: Floats
    ) -> bool:
        """Whether what failures show says more than their number does."""

        def gain(some: Bools, others: Bools) -> Floats:
            lessons = NextRight().fit(beliefs.take(rows[some]), evidence.take(some), right[some], weights[some]).lessons
            left = beliefs.take(rows[others]), evidence.take(others)
            plain, taught = next_right(COUNTS_ONLY, *left), next_right(lessons, *left)
            return log_losses(plain, right[others]) - log_losses(taught, right[others])

        return self._gains(len(beliefs), rows, gain)  # shrunk as lessons are, a wrong one costs little

    def _votes_lesson(self, beliefs: Beliefs, cases: _Cases, unjudged: Bools) -> LeaderRight | None:
        """How often leaders are right, where that says more than the Beta test of the first two answers.

        Taught by queries that no verdict stopped: of others the votes that agree on a right answer are missing.
        """
        voted = cases.voted & unjudged[:, None, None]
        rows, evidence, right = cases.vote_rows[voted], cases.votes.take(voted), cases.leader_right[voted]
        if len(np.unique(rows)) < EXAMPLES_MIN:
            return None
        usual = self.next_right_.logprob_

        def gain(some: Bools, others: Bools) -> Floats:
            lesson = LeaderRight().fit(beliefs.take(rows[some]), evidence.take(some), right[some], usual)
            left = evidence.take(others)
            plain = np.array([leader_holds(int(a), int(b)) for a, b in zip(left.leader, left.runner_up, strict=True)])
            taught = leader_right(lesson.lessons, beliefs.take(rows[others]), left)
            return log_losses(plain, right[others]) - log_losses(taught, right[others])

        if not self._gains(len(beliefs), rows, gain):
            return None
        return LeaderRight().fit(beliefs.take(rows), evidence, right, usual)

    def _vote_weights(self, examples: Examples, cases: _Cases) -> tuple[float, ...]:
        """How votes are weighed by what samples show, where that elects more right answers than their probability does.

        Every query with right and wrong samples teaches it, whatever ended it.
        """
        if len(examples) < EXAMPLES_MIN:
            return ()
        elections = hold_elections(cases.drawn, examples.samples_max)
        gains = np.zeros(len(examples))
        for _, left in self._splits(len(examples)):
            others = np.isin(np.arange(len(examples)), left)
            lessons = VoteWeights().fit(elections.of(~others)).lessons
            gains[left] = cases.elected(left, lessons) - cases.elected(left, COUNTS_ONLY)
        if gains.mean() <= gains.std() / np.sqrt(len(gains)):
            return ()
        return VoteWeights().fit(elections).lessons.voting

    def _gains(self, queries: int, rows: NDArray[np.int64], gain: Callable[[Bools, Bools], Floats]) -> bool:
        """Whether a lesson of some cases makes others, of queries that taught nothing, likelier in the mean.

        `rows` is the query of each case, and `gain` what the lesson of some cases lowers the log loss of others by.
        """
        gains = np.zeros(queries)
        if queries < EXAMPLES_MIN:
            return False
        for taught, left in self._splits(queries):
            some, others = np.isin(rows, taught), np.isin(rows, left)
            if some.any() and others.any():
                np.add.at(gains, rows[others], gain(some, others))
        return bool(gains.mean() > 0)


class _Cases:
    """Prefixes of the examples' samples, and how often what came later was right; all arrays (Q, R, N).

    Those of `votes`, `voted`, `vote_rows` and `leader_right` have one column more: all samples of an example.

    Samples that anything could have ended are put in R random orders, and all later ones count. Where a rule stopped
    them there is one order, and only the very next sample, given that it was drawn, is as it would have been without.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        shape = (len(examples), 1 if examples.stopped else ORDERS, examples.samples.tokens.shape[1])
        keys = np.zeros(shape) if examples.stopped else np.random.default_rng(seed).random(shape)
        keys[np.broadcast_to(~examples.real[:, None, :], keys.shape)] = np.inf
        order = np.argsort(keys, axis=-1, kind="stable")
        at = np.arange(len(examples))[:, None, None]
        drawn = Samples(**{name: getattr(examples.samples, name)[at, order] for name in Samples.__dataclass_fields__})
        seen = see(drawn, judged=True)
        real = np.broadcast_to(examples.real[:, None, :], keys.shape)  # sorted to the front already
        accepted = drawn.accepted & real
        self.evidence = seen.evidence.take((slice(None), slice(None), slice(None, -1)))
        self.failures = self.evidence.failures
        n = np.maximum(examples.samples_max[:, None, None] - np.arange(shape[-1]), 1)
        later = np.cumsum(accepted[..., ::-1], axis=-1)[..., ::-1] / n
        self.later = accepted.astype(np.float64) if examples.stopped else later
        self.failed = (self.failures == np.arange(keys.shape[-1])) & real
        self.rows = np.broadcast_to(at, keys.shape)
        self.weights = np.ones(keys.shape)
        self.votes = seen.evidence
        self.voted = (self.votes.leader > 0) & (self.votes.samples <= examples.samples_max[:, None, None])
        self.vote_rows = np.broadcast_to(at, self.voted.shape)
        self.leader_right = _leads_right(drawn, seen.leader_code)
        self.drawn = drawn
        many = np.arange(shape[-1] + 1)
        self.votes_of = (many >= VOTES_MIN) & (many <= examples.samples_max[:, None])

    def scale(self, rates: Floats, some: NDArray[np.int64] | slice = ALL) -> BetaScale:
        """The Beta distributions that go with rates of the examples (Q,), learned from all or some of those."""
        failed = self.failed[some]
        raw = np.broadcast_to(rates[some][:, None, None], failed.shape)[failed]
        failures, later, weights = (part[some][failed] for part in (self.failures, self.later, self.weights))
        return BetaScale().fit(raw, failures, later, weights)

    def elected(self, rows: NDArray[np.int64], lessons: Lessons) -> Floats:
        """How often votes of two or more samples elect a right answer, of some of the examples."""
        part = Samples(**{name: getattr(self.drawn, name)[rows] for name in Samples.__dataclass_fields__})
        right = _leads_right(part, see(part, judged=False, lessons=lessons).elected_code).mean(axis=1)
        counted = self.votes_of[rows]
        return np.asarray((right * counted).sum(axis=1) / np.maximum(1, counted.sum(axis=1)))


def _leads_right(samples: Samples, leader: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the leading answer of each prefix is right, by the verdict on a sample that gave it."""
    found = np.zeros(leader.shape, bool)
    for column in range(samples.answers.shape[-1]):
        same = (samples.answers[..., column : column + 1] == leader) & (leader != NO_ANSWER)
        found |= same & samples.accepted[..., column : column + 1]
    return found


def are_better(losses: Floats, others: Floats) -> bool:
    """Whether the log losses of queries that taught nothing are lower than others of the same queries.

    By a standard error where there are few, and by less and less: what noise can cost shrinks with their number, and to
    ask for the same of all would turn away every other kind of knowledge that helps.
    """
    gains = others - losses
    return bool(gains.mean() * len(gains) > gains.std() * np.sqrt(EXAMPLES_MIN))
