"""What a predictor may know: of a query before anything is spent, and of those that were answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.evidence import Bools, Ints, Samples


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Facts:
    """One query under one arm, before anything is spent on it.

    `probe` (D,) is a small model's hidden state at the end of the prompt.
    """

    text: str
    prompt_tokens: int
    task: str | None = None
    tenant: str | None = None
    probe: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examples:
    """Q answered queries of one arm with up to N judged samples each; row q has `samples_max[q]` of them.

    `samples.accepted` is whether a sample is right. `stopped` says that a rule which looked at the samples ended each
    row, as in a ledger: their order means something then, and the last of them is no random one. `no_verdict` (Q,) are
    the rows that were ended without a look at a verdict, as votes are; None stands for all of them.
    """

    facts: tuple[Facts, ...]
    samples: Samples
    samples_max: Ints
    stopped: bool = False
    no_verdict: Bools | None = None

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def right(self) -> NDArray[np.float64]:
        """How many samples of each query are right."""
        return np.asarray(np.where(self.real, self.samples.accepted, False).sum(axis=1), np.float64)

    @property
    def real(self) -> NDArray[np.bool_]:
        """Which places of the rows hold a sample."""
        return np.asarray(np.arange(self.samples.tokens.shape[1]) < self.samples_max[:, None])

    @property
    def unjudged(self) -> Bools:
        """Which rows no verdict ended."""
        return np.ones(len(self), bool) if self.no_verdict is None else self.no_verdict

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Some of the examples."""
        return Examples(
            facts=tuple(self.facts[row] for row in rows),
            samples=Samples(**{name: getattr(self.samples, name)[rows] for name in Samples.__dataclass_fields__}),
            samples_max=self.samples_max[rows],
            stopped=self.stopped,
            no_verdict=None if self.no_verdict is None else self.no_verdict[rows],
        )
