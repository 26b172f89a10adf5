"""The policies by name: ours, and those of others to compare with. The oracles are the simulator's own."""

from scheduler.core.policies.adaptive_consistency import AdaptiveConsistency, AdaptiveConsistencyDirichlet
from scheduler.core.policies.bandit import Elimination
from scheduler.core.policies.base import Peer, Policy, WindowPeer
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

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (AdaptiveConsistency(), AdaptiveConsistencyDirichlet(), EarlyStopping(), ItsHub(), Elimination())
}
"""Those that need to know nothing but the query."""
WINDOW_PEERS: dict[str, WindowPeer] = {
    peer.name: peer for peer in (DifficultyAdaptive(), DamaniOnline(), DamaniBinned(), SnellBins(), SolveThenLearn())
}
"""Those that share a budget out among the queries of a window."""
WITH_HISTORY = frozenset({"damani-binned", "snell", "lagrangian"})
"""Those that measure on earlier queries what budgets bring."""

_OWN: tuple[Policy, ...] = (Uniform(), BestOfNWithStop(), BEST_OF_N, SELF_CONSISTENCY, Allotd())
POLICIES: dict[str, Policy] = {**{own.name: own for own in _OWN}, **PEERS, **WINDOW_PEERS}

__all__ = ["PEERS", "POLICIES", "WINDOW_PEERS", "WITH_HISTORY", "Policy"]
