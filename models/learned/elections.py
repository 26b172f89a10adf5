"""Which samples' votes should weigh more: learned from elections in which the right answer stood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator

from scheduler.core.evidence import NO_ANSWER, Bools, Ints, Samples
from scheduler.core.said import PLAIN
from scheduler.types import Lessons

Floats = NDArray[np.float64]

VOTES_MIN = 2
"""Of one sample there is nothing to elect."""
COUNT_L2 = 0.2
"""How strongly the worth of a further vote is drawn to that of the first ones."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Elections:
    """E elections of queries, each with two or more answers of which some are right.

    `shown` (V, F) are the votes, those of one answer together: votes `votes_at[a]` and on are for answer a of A, and
    answers `answers_at[e]` and on stand in election e. `answer_of` (V,) and `election_of` (A,) say the same the other
    way round, `right` (A,) which answers are right, `query` (E,) which query it is, and `lanes` how many random orders
    of each query's samples there are.
    """

    shown: Floats
    votes_at: Ints
    answers_at: Ints
    answer_of: Ints
    election_of: Ints
    right: Bools
    query: Ints
    lanes: int

    def __len__(self) -> int:
        return len(self.query)

    def of(self, queries: Bools) -> Elections:
        """Those of some of the queries."""
        kept = queries[self.query]
        answers = kept[self.election_of]
        votes = answers[self.answer_of]
        answer_of = (np.cumsum(answers) - 1)[self.answer_of[votes]]
        election_of = (np.cumsum(kept) - 1)[self.election_of[answers]]
        return Elections(
            shown=self.shown[votes],
            votes_at=_starts(answer_of),
            answers_at=_starts(election_of),
            answer_of=answer_of,
            election_of=election_of,
            right=self.right[answers],
            query=self.query[kept],
            lanes=self.lanes,
        )


def hold_elections(samples: Samples, counts: Ints) -> Elections:
    """Elections by the first 2, 4, 8, ... and by all samples (Q, R, N) of each query, of which there are `counts`."""
    shown, right, query = [], [], []
    answers_in, votes_for = [], []
    codes, accepted = samples.answers, samples.accepted
    for q, r in np.ndindex(codes.shape[:2]):
        n = int(counts[q])
        for k in sorted({2**i for i in range(1, n.bit_length())} | {n}):
            if not VOTES_MIN <= k <= n:
                continue
            votes: dict[int, list[int]] = {}
            for i in range(k):
                if codes[q, r, i] != NO_ANSWER:
                    votes.setdefault(int(codes[q, r, i]), []).append(i)
            are_right = [bool(accepted[q, r, given[0]]) for given in votes.values()]
            if len(votes) > 1 and any(are_right) and not all(are_right):
                shown += [samples.said[q, r, given] for given in votes.values()]
                votes_for += [len(given) for given in votes.values()]
                right += are_right
                answers_in.append(len(votes))
                query.append(q)
    answer_of = np.repeat(np.arange(len(votes_for)), votes_for)
    election_of = np.repeat(np.arange(len(answers_in)), answers_in)
    return Elections(
        shown=np.concatenate(shown) if shown else np.zeros((0, len(PLAIN))),
        votes_at=_starts(answer_of),
        answers_at=_starts(election_of),
        answer_of=answer_of,
        election_of=election_of,
        right=np.array(right, np.bool_),
        query=np.array(query, np.int64),
        lanes=codes.shape[1],
    )


class VoteWeights(BaseEstimator):  # type: ignore[misc]
    """Learns by what its sample shows how much a vote should weigh: a conditional logistic regression on answers.

    That an answer is the right one is as likely as its share of (the sum of its votes' weights) ** count, where a vote
    weighs exp(theta . what its sample shows); how hard the query is falls out (McFadden 1974, with the answer as the
    choice). Theta is drawn to the plain rule.
    """

    def __init__(self, *, l2: float = 1.0) -> None:
        self.l2 = l2

    def fit(self, elections: Elections) -> Self:
        """The weights that make the right answers likeliest."""
        plain = np.array(PLAIN)
        if not len(elections):
            self.theta_ = plain
            return self

        def loss(parameters: Floats) -> tuple[float, Floats]:
            count, theta = float(np.exp(parameters[0])), parameters[1:]
            size, slope = _answers(elections, theta)
            scores = count * size
            of_all, of_right = (_shares(scores, elections, only) for only in (None, elections.right))
            pull = (of_all[0] - of_right[0]) / elections.lanes
            value = (of_all[1] - of_right[1]).sum() / elections.lanes
            value += self.l2 * ((theta - plain) ** 2).sum() / 2 + COUNT_L2 * parameters[0] ** 2 / 2
            by_count = pull @ scores + COUNT_L2 * parameters[0]
            return float(value), np.r_[by_count, count * pull @ slope + self.l2 * (theta - plain)]

        start = np.r_[0.0, plain]
        self.theta_ = minimize(loss, start, jac=True, method="L-BFGS-B").x[1:]
        return self

    @property
    def lessons(self) -> Lessons:
        """What it learned of single votes."""
        return Lessons(voting=tuple(map(float, self.theta_)))


def _answers(elections: Elections, theta: Floats) -> tuple[Floats, Floats]:
    """(A,) the logarithm of what each answer's votes weigh together, and (A, F) its slope in theta."""
    scores = elections.shown @ theta
    most = np.maximum.reduceat(scores, elections.votes_at)
    weights = np.exp(scores - most[elections.answer_of])
    total = np.add.reduceat(weights, elections.votes_at)
    shares = weights / total[elections.answer_of]
    return np.log(total) + most, np.add.reduceat(elections.shown * shares[:, None], elections.votes_at)


def _shares(scores: Floats, elections: Elections, only: Bools | None) -> tuple[Floats, Floats]:
    """(A,) each answer's share of its election, and (E,) the logarithm of the whole; of some of the answers only."""
    kept = scores if only is None else np.where(only, scores, -np.inf)
    most = np.maximum.reduceat(kept, elections.answers_at)
    parts = np.exp(kept - most[elections.election_of])
    whole = np.add.reduceat(parts, elections.answers_at)
    return parts / whole[elections.election_of], np.log(whole) + most


def _starts(groups: Ints) -> Ints:
    """Where each group of equal neighbours begins."""
    return np.flatnonzero(np.diff(groups, prepend=-1))
