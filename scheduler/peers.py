"""Published rules that share a budget out in advance: how many samples they give each query of a window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from scheduler.core.beliefs import Beliefs, Floats
from scheduler.core.curves import best_of_n, tokens_until_accepted
from scheduler.core.policies import WINDOW_PEERS, WITH_HISTORY
from scheduler.core.policies.base import History, Mode, Workload
from scheduler.core.votes import vote_curve
from scheduler.drafts import Draft, is_voted
from scheduler.learning import Past


def share_out(drafts: Sequence[Draft], past: Callable[[str], Past | None]) -> list[Draft]:
    """The drafts, with the counts of those whose strategy is such a rule; one sample each at least.

    What was planned together is one window: queries of one tenant, strategy, setting and model, judged alike. A rule
    that needs earlier queries leaves the limits as they are where the predictor that had them was rolled back.
    """
    groups: dict[tuple[str, str, str, Mode], list[int]] = defaultdict(list)
    for row, draft in enumerate(drafts):
        if draft.plan.arm.kind in WINDOW_PEERS:
            mode = Mode.VOTE if is_voted(draft.query, draft.plan) else Mode.VERIFIER
            groups[draft.tenant_id, draft.plan.arm.strategy, draft.plan.arm.model, mode].append(row)
    shared = list(drafts)
    for (_, _, model, mode), rows in groups.items():
        for row, count in zip(rows, _counts([drafts[row] for row in rows], mode, past(model)), strict=True):
            plan = drafts[row].plan
            least = max(1, drafts[row].drawn)  # what is paid for is looked at in any case
            samples_max = min(max(count, least), plan.samples_max)
            shared[row] = replace(drafts[row], plan=replace(plan, samples_max=samples_max))
    return shared


def _counts(drafts: Sequence[Draft], mode: Mode, past: Past | None) -> list[int]:
    arm = drafts[0].plan.arm
    peer = WINDOW_PEERS[arm.kind]
    limits = np.array([draft.plan.samples_max for draft in drafts])
    if arm.kind in WITH_HISTORY and past is None:
        return [int(limit) for limit in limits]
    workload = Workload(
        mode=mode,
        beliefs=_beliefs(
            np.array([draft.prediction.alpha for draft in drafts]),
            np.array([draft.prediction.beta for draft in drafts]),
            np.array([draft.prediction.tokens_expected for draft in drafts]),
        ),
        samples_max=limits,
        history=None if past is None else _history(past, mode, int(limits.max())),
    )
    counts = peer.counts(workload, peer.standard if arm.setting is None else arm.setting)
    return [int(count) for count in counts]


def _history(past: Past, mode: Mode, most: int) -> History:
    """What 1..n samples of earlier queries reach: by the belief in each, with its own samples counted in."""
    alpha, beta = past.alpha + past.right, past.beta + past.judged - past.right
    each = np.arange(most + 1) * past.tokens_mean[:, None]
    return History(
        beliefs=_beliefs(past.alpha, past.beta, past.tokens_mean),
        right=best_of_n(alpha, beta, most) if mode is Mode.VERIFIER else vote_curve(alpha, beta, most),
        tokens=tokens_until_accepted(alpha, beta, past.tokens_mean, most) if mode is Mode.VERIFIER else each,
    )


def _beliefs(alpha: Floats, beta: Floats, tokens_mean: Floats) -> Beliefs:
    """Beliefs whose quantiles nobody asks for."""
    quantiles = np.zeros((len(alpha), 0))
    return Beliefs(alpha=alpha, beta=beta, tokens_mean=tokens_mean, tokens_quantiles=quantiles, levels=())
