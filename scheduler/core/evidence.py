"""What samples show as they come: the running counts that stopping rules and posteriors look at, for many at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.beliefs import Evidence, Floats
from scheduler.core.said import vote_weights
from scheduler.types import COUNTS_ONLY, Lessons

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_ANSWER = -1
"""The code of a sample in which no answer could be read."""
TOP_VOTES = 5
"""How many answers' votes are kept: what Adaptive-Consistency's Dirichlet rule looks at."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """Samples in the order in which they were drawn; every array has the shape (..., N).

    `answers` holds a code per distinct answer of the query (from 0 on, NO_ANSWER where none could be read), `tokens` a
    sample's length, `logprob` its mean log-probability per token (NaN where the server gave none), and `truncated`
    whether it ran into the limit. `accepted` is the verifier's verdict, all false where nothing judges. `said`, with
    one axis more, is what each shows beside its answer (`scheduler.core.said`).
    """

    answers: Ints
    tokens: Ints
    logprob: Floats
    truncated: Bools
    accepted: Bools
    said: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """What a rule may look at; every array has the shape (..., K): one column per number of samples drawn.

    `evidence` holds the counts that posteriors use. `drawn` is how many samples there are and `accepted` how many of
    them the verifier accepted. `streak` is how many of the last samples gave the same answer, and `top_votes`
    (..., K, TOP_VOTES) the votes of the most frequent answers, most first. `leader_code` is the answer that leads: the
    first one seen among equals, NO_ANSWER where none could be read; `elected_code` the one that leads where votes are
    weighed (`scheduler.core.said.vote_weights`).
    """

    evidence: Evidence
    drawn: Ints
    accepted: Ints
    streak: Ints
    top_votes: Ints
    leader_code: Ints
    elected_code: Ints

    def take(self, cells: NDArray[Any] | tuple[Any, ...]) -> Seen:
        """Some of the cells: by index, by mask, or by a tuple of indices."""
        return Seen(
            evidence=self.evidence.take(cells),
            **{name: getattr(self, name)[cells] for name in self.__dataclass_fields__ if name != "evidence"},
        )


def see(samples: Samples, *, judged: bool, only_last: bool = False, lessons: Lessons = COUNTS_ONLY) -> Seen:
    """What each prefix of the samples shows: N samples give N + 1 columns, the first with nothing drawn.

    Column k depends on the first k samples only. Where nothing judges, no failures are counted. With `only_last` the
    votes of the last column alone are counted out, which takes a fraction of the time. The lessons weigh votes.
    """
    lanes, drawn = samples.answers.shape[:-1], samples.answers.shape[-1]
    rows = int(np.prod(lanes, dtype=np.int64))
    fields = {name: getattr(samples, name) for name in samples.__dataclass_fields__}
    fields["weight"] = vote_weights(lessons, fields.pop("said"))
    flat = {name: values.reshape(rows, drawn) for name, values in fields.items()}
    counts = _Counts(lanes=rows, columns=drawn + 1, codes=_codes(samples.answers))
    for k in range(drawn):
        counts.add(k, {name: values[:, k] for name, values in flat.items()})
        if not only_last or k == drawn - 1:
            counts.fill(k + 1)
    running = {name: _running(values) for name, values in _sums(flat).items()}
    running["failures"] = running["samples"] - running["accepted"] if judged else np.zeros_like(running["samples"])
    accepted = running.pop("accepted")
    evidence = {**running, **{name: getattr(counts, name) for name in _VOTED}}
    return Seen(
        evidence=Evidence(**{name: np.asarray(v, np.float64).reshape(*lanes, -1) for name, v in evidence.items()}),
        drawn=running["samples"].astype(np.int64).reshape(*lanes, -1),
        accepted=accepted.astype(np.int64).reshape(*lanes, -1),
        streak=counts.streak.reshape(*lanes, -1),
        top_votes=counts.top_votes.reshape(*lanes, drawn + 1, TOP_VOTES),
        leader_code=counts.leader_code.reshape(*lanes, -1),
        elected_code=counts.elected_code.reshape(*lanes, -1),
    )


_VOTED = ("leader", "runner_up", "distinct", "leader_tokens", "leader_logprob", "leader_logprob_known")


def _codes(answers: Ints) -> int:
    return max(TOP_VOTES, int(answers.max(initial=0)) + 1)


def _sums(flat: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    known = ~np.isnan(flat["logprob"])
    return {
        "samples": np.ones_like(flat["tokens"]),
        "accepted": flat["accepted"],
        "tokens": flat["tokens"],
        "logprob": np.where(known, flat["logprob"], 0.0),
        "logprob_known": known,
        "truncated": flat["truncated"],
        "unreadable": flat["answers"] == NO_ANSWER,
    }


def _running(values: NDArray[Any]) -> Floats:
    """Sums of the first 0, 1, ... columns."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


class _Counts:
    """Votes per lane and answer, and what each column shows of them."""

    def __init__(self, *, lanes: int, columns: int, codes: int) -> None:
        self.rows = np.arange(lanes)
        self.votes = np.zeros((lanes, codes), np.int64)
        self.weights = np.zeros((lanes, codes))
        self.first_seen = np.full((lanes, codes), columns, np.int64)
        self.sums = {name: np.zeros((lanes, codes)) for name in _VOTED[3:]}
        self.last = np.full(lanes, NO_ANSWER, np.int64)
        self.leader, self.runner_up, self.distinct, self.streak = np.zeros((4, lanes, columns), np.int64)
        self.leader_tokens, self.leader_logprob, self.leader_logprob_known = np.zeros((3, lanes, columns))
        self.top_votes = np.zeros((lanes, columns, TOP_VOTES), np.int64)
        self.leader_code, self.elected_code = np.full((2, lanes, columns), NO_ANSWER, np.int64)

    def add(self, k: int, sample: dict[str, NDArray[Any]]) -> None:
        """Count sample k of every lane."""
        voted = sample["answers"] != NO_ANSWER
        rows, codes = self.rows[voted], sample["answers"][voted]
        self.votes[rows, codes] += 1
        self.first_seen[rows, codes] = np.minimum(self.first_seen[rows, codes], k)
        known = ~np.isnan(sample["logprob"][voted])
        self.weights[rows, codes] += sample["weight"][voted]
        self.sums["leader_tokens"][rows, codes] += sample["tokens"][voted]
        self.sums["leader_logprob"][rows, codes] += np.where(known, sample["logprob"][voted], 0.0)
        self.sums["leader_logprob_known"][rows, codes] += known
        same = voted & (sample["answers"] == self.last)
        self.streak[:, k + 1] = np.where(same, self.streak[:, k] + 1, voted)
        self.last = sample["answers"]

    def fill(self, column: int) -> None:
        """What the votes counted so far show."""
        top = -np.partition(-self.votes, TOP_VOTES - 1, axis=1)[:, :TOP_VOTES]
        top = -np.sort(-top, axis=1)
        self.top_votes[:, column] = top
        self.leader[:, column], self.runner_up[:, column] = top[:, 0], top[:, 1]
        self.distinct[:, column] = np.count_nonzero(self.votes, axis=1)
        code, elected = self._first_of_most(self.votes), self._first_of_most(self.weights)
        anyone = top[:, 0] > 0
        self.leader_code[:, column] = np.where(anyone, code, NO_ANSWER)
        self.elected_code[:, column] = np.where(anyone, elected, NO_ANSWER)
        for name, sums in self.sums.items():
            getattr(self, name)[:, column] = np.where(anyone, sums[self.rows, code], 0.0)

    def _first_of_most(self, sums: NDArray[Any]) -> Ints:
        """The answer with the largest sum in each lane; of equals, the one seen first."""
        most = sums == sums.max(axis=1, keepdims=True)
        return np.asarray(np.argmin(np.where(most, self.first_seen, np.iinfo(np.int64).max), axis=1), np.int64)
