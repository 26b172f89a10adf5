"""The states a batch, a query, an attempt, a wave and a delivery can be in, and which of them are final."""

from __future__ import annotations

from enum import StrEnum


class BatchState(StrEnum):
    """OpenAI's batch statuses."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


BATCH_FINAL = frozenset({BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED})


class QueryState(StrEnum):
    """Where a query is on its way; the last six are outcomes and are never folded together."""

    QUEUED = "queued"
    PLANNED = "planned"
    RUNNING = "running"
    PARKED = "parked"
    ANSWERED = "answered"
    BUDGET_STOPPED = "budget_stopped"
    ABANDONED = "abandoned"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


QUERY_OPEN = frozenset({QueryState.QUEUED, QueryState.PLANNED, QueryState.RUNNING, QueryState.PARKED})
QUERY_FINAL = frozenset(set(QueryState) - QUERY_OPEN)


class AttemptState(StrEnum):
    """One funded execution of a plan: waiting for a worker, running on one, finished, or taken away from it."""

    DISPATCHED = "dispatched"
    RUNNING = "running"
    FINISHED = "finished"
    LOST = "lost"


class WaveState(StrEnum):
    """A wave's money: held while tokens are generated, then settled; `expired` when its worker died."""

    HELD = "held"
    SETTLED = "settled"
    EXPIRED = "expired"


class DeliveryState(StrEnum):
    """Whether an alert has reached a webhook; `dead` was tried as often as it is going to be."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class PredictorState(StrEnum):
    """Where a predictor stands: in use, asked for or being judged, kept out with a reason, or used no more."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    KEPT_OUT = "kept_out"
    RETIRED = "retired"


USABLE = ("stop", "length", "tool_calls", "function_call", "content_filter")
"""Finish reasons of samples that a strategy may use; aborted and lost output is paid for and kept, but no answer."""
