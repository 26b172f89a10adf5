"""What the learned predictor makes of recorded queries: beliefs of those replayed, from those that teach."""

from __future__ import annotations

import numpy as np

from models.learned.facts import Examples, Facts
from models.learned.predictor import DifficultyPredictor
from scheduler.core.beliefs import Beliefs
from scheduler.simulation.pools import PoolLine
from scheduler.simulation.recorded import Recorded


def teach(train: Recorded, *, with_probe: bool, seed: int) -> tuple[DifficultyPredictor, Beliefs]:
    """A predictor of the training queries, and what it would have believed of each without having seen it."""
    predictor = DifficultyPredictor(with_probe=with_probe, seed=seed)
    return predictor, predictor.fit_beliefs(as_examples(train))


def as_examples(recorded: Recorded) -> Examples:
    """Recorded queries as a predictor sees them."""
    return Examples(
        facts=tuple(map(as_facts, recorded.lines)), samples=recorded.samples, samples_max=recorded.samples_max
    )


def as_facts(line: PoolLine) -> Facts:
    """What is known of a recorded query before anything is spent; the pool stands in for a task that has no name."""
    return Facts(
        text=line.question,
        prompt_tokens=line.prompt_tokens,
        task=line.task or line.pool,
        probe=None if line.probe is None else np.array(line.probe.vector, np.float32),
    )
