"""How often a tenant may ask: counted over the last minute, in all API processes together where the broker is Redis."""

from __future__ import annotations

import math
import time

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter
from redis.exceptions import RedisError

from scheduler.errors import RateLimited

BROKER_TIMEOUT_S = 0.25
"""Every request waits for this count, and a broker on the same network answers in a hundredth of it."""
ALONE_S = 10.0
"""How long this process counts by itself before it tries the broker again."""

log = structlog.get_logger()


class RequestRates:
    """Counts tenants' requests. Without the broker each process counts its own, so that its loss locks nobody out."""

    def __init__(self, broker_url: str) -> None:
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._shared: MovingWindowRateLimiter | None = None
        if broker_url.startswith(("redis://", "rediss://")):
            timeouts = {"socket_timeout": BROKER_TIMEOUT_S, "socket_connect_timeout": BROKER_TIMEOUT_S}
            storage = storage_from_string(broker_url, key_prefix="allotd-rate", **timeouts)
            self._shared = MovingWindowRateLimiter(storage)
        self._alone_until = 0.0

    def count(self, tenant_id: str, per_minute: int) -> None:
        """Count one request. Raises RateLimited where there were too many in the last minute."""
        if self._shared is not None and time.monotonic() >= self._alone_until:
            try:
                return _count(self._shared, tenant_id, per_minute)
            except (RedisError, OSError) as error:
                self._alone_until = time.monotonic() + ALONE_S
                log.warning("rates_counted_alone", error=str(error))
        return _count(self._own, tenant_id, per_minute)


def _count(limiter: MovingWindowRateLimiter, tenant_id: str, per_minute: int) -> None:
    limit = RateLimitItemPerMinute(per_minute)
    if limiter.hit(limit, tenant_id):
        return
    wait_s = max(1, math.ceil(limiter.get_window_stats(limit, tenant_id).reset_time - time.time()))
    raise RateLimited(
        f"This tenant may ask {per_minute} times a minute and has; try again in {wait_s} s.", retry_after_s=wait_s
    )
