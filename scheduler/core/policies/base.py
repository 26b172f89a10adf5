"""What a policy is: how many samples a query gets, decided before and between its waves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from scheduler.core.beliefs import Beliefs, Floats
from scheduler.core.evidence import Ints, Seen
from scheduler.types import COUNTS_ONLY, Lessons

if TYPE_CHECKING:
    from scheduler.core.policies.strategies import StrategyRule

Number = TypeVar("Number", bound=np.generic)


class Mode(StrEnum):
    """What tells a right answer: a verifier that accepts it, or nothing but the vote."""

    VERIFIER = "verifier"
    VOTE = "vote"


class Rule(Protocol):
    """Decides between waves. Bound to Q queries, it is asked about (Q, ...) cells: Q = 1 in a worker.

    The same cells give the same decision wherever they stand, so a whole replay can be decided in one call.
    """

    def more(self, seen: Seen) -> Ints:
        """How many samples to draw next, per cell of `seen`; 0 ends the query."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class History:
    """T queries of the past: what was believed of them then, and what n samples of them reached and took.

    `right` (T, N + 1) is the chance that n samples give the right answer, `tokens` (T, N + 1) what n samples take,
    in verifier mode up to the first accepted one.
    """

    beliefs: Beliefs
    right: Floats
    tokens: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workload:
    """What is known of Q queries before anything is spent.

    `samples_max` (Q,) is the most samples each may have. `history` is what earlier queries showed, where there is any.
    """

    mode: Mode
    beliefs: Beliefs
    samples_max: Ints
    lessons: Lessons = COUNTS_ONLY
    history: History | None = None

    def __len__(self) -> int:
        return len(self.beliefs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One point of a policy's frontier: the rule at one budget, price or threshold, and what that is called.

    `weighs_votes` says that it elects the answer by `Seen.elected_code` instead of `Seen.leader_code`;
    `rehearse`, that it is one of many, to be used only where it proved worth its cost on earlier queries.
    """

    label: str
    rule: Rule | StrategyRule
    weighs_votes: bool = False
    rehearse: bool = False


class Policy(Protocol):
    """Turns a budget into a rule."""

    @property
    def name(self) -> str:
        """What the command line and the plans call it."""
        ...

    @property
    def modes(self) -> frozenset[Mode]:
        """Where it can be used."""
        ...

    def settings(self, workload: Workload, budgets: Sequence[float]) -> list[Setting]:
        """The policy at each budget, in samples per query; at its own thresholds where it knows no budget."""
        ...


class Peer(Policy, Protocol):
    """A policy that a query can ask for by name: `asc`, or `asc@0.9` for another setting than the published one."""

    @property
    def standard(self) -> float:
        """The setting where none is named: that of published figures or of their authors' code, where there is one."""
        ...

    @property
    def allowed(self) -> tuple[float, float]:
        """The lowest and the highest setting that mean something."""
        ...

    def rule(self, workload: Workload, setting: float) -> Rule:
        """How the samples of these queries are drawn at a setting."""
        ...


class WindowPeer(Peer, Protocol):
    """A peer that shares a budget out among the queries of a window before it draws any sample."""

    def counts(self, workload: Workload, setting: float) -> Ints:
        """(Q,) the most samples of each query."""
        ...


BOTH = frozenset(Mode)


def in_tokens(budgets: Sequence[float], beliefs: Beliefs) -> list[float]:
    """Budgets in samples per query as tokens of the whole workload."""
    return [float(budget) * float(beliefs.tokens_mean.sum()) for budget in budgets]


def rows_like(values: NDArray[Number], seen: Seen) -> NDArray[Number]:
    """Values (Q,) with as many axes as the cells of `seen` have."""
    return values.reshape(values.shape + (1,) * (seen.drawn.ndim - 1))


def whole(budgets: Sequence[float]) -> list[int]:
    """The budgets that are whole numbers of samples."""
    return sorted({int(b) for b in budgets if b >= 1 and float(b).is_integer()})
