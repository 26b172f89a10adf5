"""Every error a user can meet. The sentence is the docstring; numbers and names travel as attributes."""

from __future__ import annotations

from typing import Any


class SchedulerError(Exception):
    """Something went wrong inside allotd."""

    code = "internal_error"
    http_status = 500
    retryable = False

    def __init__(self, message: str | None = None, **attributes: Any) -> None:
        self.message = message or (self.__doc__ or "").strip()
        self.attributes = attributes
        super().__init__(self.message)


class InvalidRequest(SchedulerError):
    """The request cannot be understood; correct it and send it again."""

    code = "invalid_request"
    http_status = 400


class Unauthorized(SchedulerError):
    """The API key is missing, wrong or revoked; send `Authorization: Bearer KEY`."""

    code = "invalid_api_key"
    http_status = 401


class Forbidden(SchedulerError):
    """This API key may not do that; use a key with the scope it needs."""

    code = "insufficient_permissions"
    http_status = 403


class NotFound(SchedulerError):
    """There is no such object."""

    code = "not_found"
    http_status = 404


class Conflict(SchedulerError):
    """The object's state does not allow this."""

    code = "conflict"
    http_status = 409


class RateLimited(SchedulerError):
    """The tenant asks more often than it may; wait as `Retry-After` says."""

    code = "rate_limit_exceeded"
    http_status = 429
    retryable = True


class QueueFull(SchedulerError):
    """As many of the tenant's queries wait as may; try again when some have ended."""

    code = "queue_full"
    http_status = 429
    retryable = True


class TooLarge(SchedulerError):
    """The body is larger than this server accepts; split it."""

    code = "request_too_large"
    http_status = 413


class CapReached(SchedulerError):
    """A spending limit leaves no room for this; raise it or lower the budget."""

    code = "insufficient_quota"
    http_status = 429


class ModelUnpriced(SchedulerError):
    """The model has no price, so its cost cannot be limited; set one with `allotd price set`."""

    code = "model_unpriced"
    http_status = 400


class LeaseLost(SchedulerError):
    """This attempt no longer belongs to this worker; its writes are refused."""

    code = "lease_lost"


class Cancelled(SchedulerError):
    """The query was cancelled."""

    code = "cancelled"


class EngineError(SchedulerError):
    """The model server failed to answer."""

    code = "engine_error"
    http_status = 502


class EngineUnavailable(EngineError):
    """The model server cannot be reached or is overloaded; nothing was generated, so trying again is free."""

    code = "engine_unavailable"
    retryable = True


class EngineRejected(EngineError):
    """The model server refused the request as invalid; sending it again would be refused again."""

    code = "engine_rejected"
    http_status = 400
