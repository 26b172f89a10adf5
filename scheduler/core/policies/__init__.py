"""The policies by name: ours, and those of others to compare with. The oracles are the simulator's own."""

from scheduler.core.policies.adaptive_consistency import AdaptiveConsistency, AdaptiveConsistencyDirichlet
from scheduler.core.policies.bandit import Elimination
from scheduler.core.policies.base import Policy
from scheduler.core.policies.damani import DamaniBinned, DamaniOnline
from scheduler.core.policies.dsc import DifficultyAdaptive
from scheduler.core.policies.esc import EarlyStopping
from scheduler.core.policies.its_hub import ItsHub
from scheduler.core.policies.lagrangian import SolveThenLearn
from scheduler.core.policies.priced import Allotd
from scheduler.core.policies.snell import SnellBins
from scheduler.core.policies.stop import BestOfNWithStop
from scheduler.core.policies.strategies import BEST_OF_N, SELF_CONSISTENCY
from scheduler.core.policies.uniform import Uniform

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Uniform(),
        BestOfNWithStop(),
        AdaptiveConsistency(),
        AdaptiveConsistencyDirichlet(),
        EarlyStopping(),
        DifficultyAdaptive(),
        ItsHub(),
        DamaniOnline(),
        DamaniBinned(),
        SnellBins(),
        SolveThenLearn(),
        Elimination(),
        BEST_OF_N,
        SELF_CONSISTENCY,
        Allotd(),
    )
}

__all__ = ["POLICIES", "Policy"]
