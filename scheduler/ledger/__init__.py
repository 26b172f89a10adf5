"""Money: hold the most a wave can cost, then post what it did cost and release the rest.

Every function runs in its caller's transaction, writes an entry for every nano-dollar it moves, and locks in one order:
tenant, cap periods, batches, queries, attempts, waves. Because every write of a tenant's money first updates the
tenant's own row, those writes happen one after the other, and what a limit leaves cannot change between looking and
taking. So that one hot tenant does not wait for a round trip per wave, many waves of a tenant are moved at once: limits
are read once, the waves are admitted one by one in memory, and each row is written once with the sum.
"""

from __future__ import annotations

from scheduler.ledger.admission import reserve, reserve_all
from scheduler.ledger.closing import expire, settle, settle_all
from scheduler.ledger.periods import current_period, held_and_spent, left_under, live_caps, name_of, tightest_cap
from scheduler.ledger.prices import as_price, price_at
from scheduler.ledger.purses import lock_tenant
from scheduler.ledger.samples import reconciled
from scheduler.ledger.terms import Funded, Reservation, Settlement, WaveRequest

__all__ = [
    "Funded",
    "Reservation",
    "Settlement",
    "WaveRequest",
    "as_price",
    "current_period",
    "expire",
    "held_and_spent",
    "left_under",
    "live_caps",
    "lock_tenant",
    "name_of",
    "price_at",
    "reconciled",
    "reserve",
    "reserve_all",
    "settle",
    "settle_all",
    "tightest_cap",
]
