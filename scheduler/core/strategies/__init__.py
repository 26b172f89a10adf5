"""The strategies by name. Each is a generator without I/O; `scheduler.execution` drives them."""

from scheduler.core.strategies.base import Generate, Score, Steps, Strategy
from scheduler.core.strategies.best_of_n import best_of_n
from scheduler.core.strategies.direct import direct
from scheduler.core.strategies.peers import PEER_STRATEGIES
from scheduler.core.strategies.self_consistency import self_consistency
from scheduler.core.strategies.uniform import uniform

STRATEGIES: dict[str, Strategy] = {
    "direct": direct,
    "best_of_n": best_of_n,
    "self_consistency": self_consistency,
    "uniform": uniform,
    **PEER_STRATEGIES,
}

__all__ = ["STRATEGIES", "Generate", "Score", "Steps", "Strategy"]
