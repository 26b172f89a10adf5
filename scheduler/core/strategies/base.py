"""What a strategy may ask for. It yields a request and is sent what came back; it never acts itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from scheduler.types import Outcome, Plan, Query, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """Ask for up to `n` more samples of the query's prompt, each of `tokens_max` tokens at most.

    What comes back is a tuple of 0 to `n` samples: fewer than asked means that the budget did not reach further, and
    none means that the strategy must end with what it has.
    """

    n: int
    tokens_max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Ask for the outcome rewards of samples, each in 0..1, from the query's verifier."""

    samples: tuple[Sample, ...]


Request = Generate | Score
Steps = Generator[Request, Any, Outcome]
Strategy = Callable[[Query, Plan], Steps]


def draw(n: int, tokens_max: int) -> Generator[Request, Any, tuple[Sample, ...]]:
    """Ask for samples, and say with which type they come back."""
    samples: tuple[Sample, ...] = yield Generate(n=n, tokens_max=tokens_max)
    return samples


def reward(samples: tuple[Sample, ...]) -> Generator[Request, Any, tuple[float, ...]]:
    """Ask for outcome rewards, and say with which type they come back."""
    rewards: tuple[float, ...] = yield Score(samples=samples)
    return rewards


def at_budget(query: Query, because: str) -> str:
    """Why a strategy ends that has drawn all it may: `because`, or that a greedy query's samples are all one."""
    return "greedy sampling would repeat its only sample" if query.is_greedy else because


def growing_wave(drawn: int, samples_max: int) -> int:
    """How many samples to ask for next: one, then half as many again as are there, never past the budget.

    The samples drawn past the one that ends the search are then at most half of those before it.
    """
    return min(max(1, drawn // 2), samples_max - drawn)
