"""Published rules as strategies: asked after each wave how many samples more, as they are in simulations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.core.beliefs import belief_of_one
from scheduler.core.observing import observed
from scheduler.core.policies import PEERS, WINDOW_PEERS
from scheduler.core.policies.base import Mode, Peer, Workload
from scheduler.core.strategies.base import Steps, Strategy, at_budget, draw, reward
from scheduler.core.strategies.best_of_n import VERIFIED
from scheduler.core.strategies.self_consistency import elect
from scheduler.types import Outcome, Plan, Query, Sample

UNKNOWN_TOKENS = 1.0
"""Rules of single queries compare no lengths."""


@dataclass(frozen=True, slots=True)
class ByRule:
    """Draws what a peer's rule asks for, one sample at least, and chooses by verdict or by the count of votes."""

    peer: Peer

    def __call__(self, query: Query, plan: Plan) -> Steps:
        """The strategy of one query."""
        judged = Mode.VERIFIER in self.peer.modes and query.verifier is not None and query.verifier.can_judge
        rule = self.peer.rule(_alone(plan, Mode.VERIFIER if judged else Mode.VOTE), self._setting(plan))
        samples: tuple[Sample, ...] = ()
        rewards: tuple[float, ...] = ()
        because = f"{self.peer.name} asks for no more"
        while True:
            accepted = [value >= VERIFIED for value in rewards] if judged else None
            wave = int(rule.more(observed(samples, accepted))[0])
            if samples and wave <= 0:
                break
            drawn = yield from draw(max(1, wave), plan.tokens_max)
            if not drawn:
                because = "cut short"
                break
            samples += drawn
            if judged:
                rewards += yield from reward(drawn)
        if len(samples) >= plan.samples_max:
            because = at_budget(query, because)
        if not judged or not samples:
            return elect(samples, [1.0] * len(samples), because=because)
        best = max(rewards)
        because = "verified" if best >= VERIFIED else because
        return Outcome(chosen=samples[rewards.index(best)], because=because, confidence=best)

    def _setting(self, plan: Plan) -> float:
        return self.peer.standard if plan.arm.setting is None else plan.arm.setting


def _alone(plan: Plan, mode: Mode) -> Workload:
    """The query as a workload of its own."""
    return Workload(
        mode=mode,
        beliefs=belief_of_one(plan.alpha, plan.beta, plan.tokens_mean or UNKNOWN_TOKENS),
        samples_max=np.array([plan.samples_max]),
    )


PEER_STRATEGIES: dict[str, Strategy] = {name: ByRule(peer) for name, peer in {**PEERS, **WINDOW_PEERS}.items()}
