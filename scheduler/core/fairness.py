"""Whose turn it is: weighted deficit round robin over tenants, on estimated cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence


class DeficitRoundRobin:
    """Serves tenants in turn, each for its weight's worth of cost; what a turn leaves unused is kept for the next.

    Shreedhar and Varghese 1996, with the quantum set to the dearest head in sight, so that every turn serves someone.
    A tenant with nothing waiting keeps no deficit: idling earns no credit.
    """

    def __init__(self) -> None:
        self._deficits: dict[str, float] = {}
        self._next: str | None = None

    def choose(self, waiting: Mapping[str, Sequence[int]], weights: Mapping[str, float], count: int) -> dict[str, int]:
        """How many of each tenant's waiting items to serve now, `count` in all at most.

        `waiting` holds each tenant's estimated costs in the order it wants them served. The turn order and the unused
        deficits carry over to the next call.
        """
        tenants = [tenant for tenant in sorted(waiting) if waiting[tenant]]
        self._deficits = {tenant: self._deficits.get(tenant, 0.0) for tenant in tenants}
        turns = deque(tenants)
        if self._next in tenants:
            turns.rotate(-tenants.index(self._next))
        served = dict.fromkeys(tenants, 0)
        left = count
        while turns and left:
            tenant = turns[0]
            heads = waiting[tenant]
            quantum = max(1, *(waiting[t][served[t]] for t in turns))
            self._deficits[tenant] += quantum * weights.get(tenant, 1.0)
            while left and served[tenant] < len(heads) and heads[served[tenant]] <= self._deficits[tenant]:
                self._deficits[tenant] -= heads[served[tenant]]
                served[tenant] += 1
                left -= 1
            turns.popleft()
            if served[tenant] < len(heads):
                turns.append(tenant)
            else:
                self._deficits[tenant] = 0.0
        self._next = turns[0] if turns else None
        return served
