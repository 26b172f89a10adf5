"""Recorded queries as arrays, and what a replay draws from them in a random order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import Floats
from scheduler.core.evidence import NO_ANSWER, Bools, Ints, Samples, Seen, see
from scheduler.core.policies.base import Mode
from scheduler.core.said import FEATURES, said
from scheduler.errors import InvalidRequest
from scheduler.simulation.pools import PoolLine
from scheduler.types import COUNTS_ONLY, Lessons

USD_PER_MTOK = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recorded:
    """Q queries of one arm with up to N samples each; what is missing stands behind `samples_max` and is never drawn.

    `samples.accepted` is whether a sample is right: what a verifier would say. `prompt_usd` and `completion_usd` are
    prices per token, NaN where a pool has none.
    """

    lines: tuple[PoolLine, ...]
    samples: Samples
    samples_max: Ints
    prompt_usd: Floats
    completion_usd: Floats

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """Q queries in R random orders: what a policy sees after 0..N samples, and what it cannot see.

    `seen` has the shape (Q, R, N + 1), `order` (Q, R, N). Hidden from policies: `right`, whether what would be chosen
    after k samples is right, `elected_right`, the same where votes are weighed, and `tokens`, what they took.
    """

    recorded: Recorded
    mode: Mode
    order: Ints
    seen: Seen
    right: Bools
    elected_right: Bools
    tokens: Ints


def as_recorded(lines: Sequence[PoolLine]) -> Recorded:
    """Lines of one arm per id as arrays."""
    arms: dict[str, str] = {}
    for line in lines:
        if arms.setdefault(line.id, line.arm) != line.arm:
            raise InvalidRequest(f"Query {line.id!r} has several arms; they are replayed as a choice between arms.")
    most = max(len(line.samples) for line in lines)
    prices = [line.price for line in lines]
    return Recorded(
        lines=tuple(lines),
        samples=_samples(lines, most),
        samples_max=np.array([len(line.samples) for line in lines]),
        prompt_usd=np.array([p.prompt_usd_per_mtok * USD_PER_MTOK if p else np.nan for p in prices]),
        completion_usd=np.array([p.completion_usd_per_mtok * USD_PER_MTOK if p else np.nan for p in prices]),
    )


def draw(recorded: Recorded, *, mode: Mode, draws: int, seed: int, lessons: Lessons = COUNTS_ONLY) -> Draws:
    """The samples of every query in `draws` random orders, the same for every policy; votes weighed by the lessons."""
    order = _orders(recorded.samples_max, recorded.samples.answers.shape[1], draws, seed)
    rows = np.arange(len(recorded))[:, None, None]
    drawn = {name: getattr(recorded.samples, name)[rows, order] for name in recorded.samples.__dataclass_fields__}
    accepted = drawn.pop("accepted")
    judged = mode is Mode.VERIFIER
    shown = Samples(**drawn, accepted=accepted if judged else np.zeros_like(accepted))
    seen = see(shown, judged=judged, lessons=lessons)
    sums = np.zeros(seen.drawn.shape, np.int64)
    np.cumsum(drawn["tokens"], axis=-1, out=sums[..., 1:])
    right = seen.accepted > 0 if judged else _answer_right(recorded, seen.leader_code)
    elected_right = right if judged else _answer_right(recorded, seen.elected_code)
    return Draws(
        recorded=recorded, mode=mode, order=order, seen=seen, right=right, elected_right=elected_right, tokens=sums
    )


def mean_curves(draws: Draws) -> tuple[Floats, Floats]:
    """(Q, N + 1) how often n samples are right and what they take, in verifier mode up to the first accepted one."""
    tokens = draws.tokens.astype(np.float64)
    if draws.mode is Mode.VERIFIER:
        each = np.diff(tokens, axis=-1)
        tokens[..., 1:] = np.cumsum(np.where(draws.right[..., :-1], 0.0, each), axis=-1)
    return draws.right.mean(axis=1), tokens.mean(axis=1)


def _samples(lines: Sequence[PoolLine], most: int) -> Samples:
    shape = (len(lines), most)
    answers, tokens = np.full(shape, NO_ANSWER), np.zeros(shape, np.int64)
    logprob, truncated, accepted = np.full(shape, np.nan), np.zeros(shape, bool), np.zeros(shape, bool)
    shown = np.zeros((*shape, len(FEATURES)))
    for row, line in enumerate(lines):
        codes: dict[str, int] = {}
        n = len(line.samples)
        answers[row, :n] = [codes.setdefault(s.answer, len(codes)) if s.answer else NO_ANSWER for s in line.samples]
        tokens[row, :n] = [s.tokens for s in line.samples]
        logprob[row, :n] = [np.nan if s.logprob is None else s.logprob for s in line.samples]
        truncated[row, :n] = [s.finish == "length" for s in line.samples]
        accepted[row, :n] = [s.correct == 1 for s in line.samples]
        shown[row, :n] = said(
            line.question,
            [s.answer or None for s in line.samples],
            [s.tokens for s in line.samples],
            [s.logprob for s in line.samples],
            [s.finish == "length" for s in line.samples],
        )
    return Samples(answers=answers, tokens=tokens, logprob=logprob, truncated=truncated, accepted=accepted, said=shown)


def _orders(samples_max: Ints, most: int, draws: int, seed: int) -> Ints:
    keys = np.random.default_rng(seed).random((len(samples_max), draws, most))
    keys[np.broadcast_to(np.arange(most) >= samples_max[:, None, None], keys.shape)] = np.inf
    return np.argsort(keys, axis=-1, kind="stable")


def _answer_right(recorded: Recorded, codes_chosen: Ints) -> Bools:
    """Whether the chosen answer of each cell is right, by the verdict on the first sample that gave it."""
    answers, accepted = recorded.samples.answers, recorded.samples.accepted
    codes = int(answers.max(initial=0)) + 1
    right = np.zeros((len(recorded), codes + 1), bool)  # the last column stands for NO_ANSWER, which is -1
    for column in range(answers.shape[1] - 1, -1, -1):
        right[np.arange(len(recorded)), answers[:, column]] = accepted[:, column]
    right[:, -1] = False
    return np.asarray(right[np.arange(len(recorded))[:, None, None], codes_chosen])
