"""Which queries teach and which are replayed: never the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from scheduler.simulation.pools import PoolLine


def apart(
    train: Sequence[PoolLine], test: Sequence[PoolLine], seed: int
) -> tuple[Sequence[PoolLine], Sequence[PoolLine]]:
    """Training and test lines without a query in common.

    Of the ids that stand in both, half teach and half are replayed, by a hash of id and seed: naming a pool twice
    splits it.
    """
    both = {line.id for line in train} & {line.id for line in test}
    teaching = {query_id for query_id in both if is_first_half(query_id, seed)}
    return (
        [line for line in train if line.id not in both or line.id in teaching],
        [line for line in test if line.id not in teaching],
    )


def is_first_half(query_id: str, seed: int) -> bool:
    """Whether a query belongs to the first of two random halves."""
    return hashlib.sha256(f"{seed}:{query_id}".encode()).digest()[0] < 128
