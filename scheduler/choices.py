"""The choices there are for each query of a window: what they are expected to gain and to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.arm_curves import arm_curves
from scheduler.core.beliefs import Floats
from scheduler.core.evidence import Ints
from scheduler.drafts import Draft, is_drawn_at_once, is_voted


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curves:
    """What 1..A samples are expected to gain and cost, a row per query."""

    gains: Floats
    costs: Floats

    def take(self, rows: Ints) -> Curves:
        """Those of some queries."""
        return Curves(gains=self.gains[rows], costs=self.costs[rows])


def curves_of(drafts: Sequence[Draft]) -> Curves:
    """What 1..A samples of each draft gain and cost; past its own limit, no more than at it."""
    most = max(max(1, draft.plan.samples_max) for draft in drafts)
    alpha = np.array([draft.prediction.alpha for draft in drafts])
    beta = np.array([draft.prediction.beta for draft in drafts])
    prompt = np.array([prompt_nanousd(draft) for draft in drafts])
    sample = np.array([sample_nanousd(draft) for draft in drafts])
    voted = np.array([is_voted(draft.query, draft.plan) for draft in drafts])
    gains, costs = arm_curves(alpha, beta, prompt, sample, voted=voted, samples_max=most)
    at_once = np.array([is_drawn_at_once(draft.query, draft.plan) for draft in drafts])
    costs[at_once] = prompt[at_once, None] + np.arange(most + 1) * sample[at_once, None]
    within = np.minimum(np.arange(1, most + 1), plain_arms(drafts)[:, None] + 1)
    return Curves(gains=np.take_along_axis(gains, within, 1), costs=np.take_along_axis(costs, within, 1))


def plain_arms(drafts: Sequence[Draft]) -> Ints:
    """The column of all that each draft may have."""
    return np.array([max(1, draft.plan.samples_max) - 1 for draft in drafts])


def prompt_nanousd(draft: Draft) -> float:
    """What a wave costs beside its samples."""
    return float(draft.query.prompt_tokens * draft.price.prompt_nanousd)


def sample_nanousd(draft: Draft) -> float:
    """What each sample of a wave is expected to cost."""
    return min(float(draft.plan.tokens_max), draft.prediction.tokens_expected) * draft.price.completion_nanousd
