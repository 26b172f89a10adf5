"""What is to be done and how it went: files, batches, queries, plans, attempts, waves, samples, labels."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, Text, UniqueConstraint, desc, false, text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Purse, RowId, Table, purse_checks


class File(Table):
    """An uploaded file, or the growing output or error file of a batch (whose bytes are read from its queries)."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_tenant_id_created_at", "tenant_id", "created_at"),
        Index("ix_files_expires_at", "expires_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes_total: Mapped[int]
    batch_id: Mapped[str | None] = mapped_column(default=None)
    """The batch whose output or errors this file shows."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None] = mapped_column(default=None)
    deleted_at: Mapped[datetime | None] = mapped_column(default=None)


class FileChunk(Table):
    """A piece of an uploaded file. In the database, so that every process on every host can read it."""

    __tablename__ = "file_chunks"

    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class Batch(Purse, Table):
    """A batch of queries of one tenant; its purse limit is the batch's own cost cap."""

    __tablename__ = "batches"
    __table_args__ = (
        *purse_checks(),
        UniqueConstraint("tenant_id", "idempotency_key"),
        Index("ix_batches_tenant_id_created_at", "tenant_id", "created_at"),
        Index("ix_batches_state", "state"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    state: Mapped[str]
    interactive: Mapped[bool] = mapped_column(default=False)
    """One query that a client waits for; not listed among batches."""
    endpoint: Mapped[str]
    completion_window: Mapped[str]
    input_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    output_file_id: Mapped[str | None] = mapped_column(default=None)
    error_file_id: Mapped[str | None] = mapped_column(default=None)
    idempotency_key: Mapped[str | None] = mapped_column(default=None)
    metadata_json: Mapped[str | None] = mapped_column(Text, default=None)
    errors_json: Mapped[str | None] = mapped_column(Text, default=None)
    """Why the batch as a whole failed, in OpenAI's shape."""
    lines_read: Mapped[int] = mapped_column(default=0)
    """Lines of the input file already turned into queries: where intake goes on after a crash."""
    bytes_read: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None] = mapped_column(default=None)
    finalizing_at: Mapped[datetime | None] = mapped_column(default=None)
    completed_at: Mapped[datetime | None] = mapped_column(default=None)
    failed_at: Mapped[datetime | None] = mapped_column(default=None)
    expired_at: Mapped[datetime | None] = mapped_column(default=None)
    cancelling_at: Mapped[datetime | None] = mapped_column(default=None)
    cancelled_at: Mapped[datetime | None] = mapped_column(default=None)
    output_expires_after_s: Mapped[int | None] = mapped_column(default=None, sort_order=7)  # after the purse's columns
    """How long after the batch's end its output and error file are kept; NULL for ever."""


class QueryRow(Purse, Table):
    """One line of a batch. Exactly one outcome ends it; a line that could not be read is `failed` from the start."""

    __tablename__ = "queries"
    __table_args__ = (
        *purse_checks(),
        UniqueConstraint("batch_id", "custom_id"),
        Index("ix_queries_batch_id_state", "batch_id", "state"),
        Index("ix_queries_state_tenant_id", "state", "tenant_id", "model", desc("priority"), "id"),
        Index("ix_queries_batch_id_finished_at", "batch_id", "finished_at"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    line: Mapped[int]
    """Its line number in the input file, from 1."""
    custom_id: Mapped[str | None] = mapped_column(default=None)
    """NULL for a line whose custom_id is missing or taken; `error_json` then tells what it said."""
    state: Mapped[str]
    model: Mapped[str | None] = mapped_column(default=None)
    body_json: Mapped[str | None] = mapped_column(Text, default=None)
    """The request without the `allotd` object."""
    strategy: Mapped[str] = mapped_column(default="auto")
    samples_max: Mapped[int | None] = mapped_column(default=None)
    tokens_max: Mapped[int | None] = mapped_column(default=None)
    verifier: Mapped[str | None] = mapped_column(default=None)
    reference: Mapped[str | None] = mapped_column(Text, default=None)
    task: Mapped[str | None] = mapped_column(default=None)
    priority: Mapped[int] = mapped_column(default=0)
    prompt_tokens_estimated: Mapped[int | None] = mapped_column(default=None)
    parked_because: Mapped[str | None] = mapped_column(default=None)
    parked_need_nanousd: Mapped[int | None] = mapped_column(default=None)
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None] = mapped_column(default=None)
    finished_at: Mapped[datetime | None] = mapped_column(default=None)
    # The outcome
    chosen_sample_id: Mapped[int | None] = mapped_column(default=None)
    because: Mapped[str | None] = mapped_column(default=None)
    confidence: Mapped[float | None] = mapped_column(default=None)
    correct: Mapped[bool | None] = mapped_column(default=None)
    """Whether the chosen sample is right, as the reference, the verifier or later feedback says."""
    error_json: Mapped[str | None] = mapped_column(Text, default=None)
    samples_drawn: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    cached_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    reasoning_tokens: Mapped[int] = mapped_column(default=0)
    models_json: Mapped[str | None] = mapped_column(Text, default=None, sort_order=7)  # after the purse's columns
    """The list of models that may answer it, `model` being that whose turn it is; NULL where it is the only one."""


class ProbeRow(Table):
    """What a small model made of a query's prompt; without a vector where it refused the prompt."""

    __tablename__ = "probes"

    query_id: Mapped[int] = mapped_column(ForeignKey("queries.id", ondelete="CASCADE"), primary_key=True)
    view: Mapped[str]
    vector: Mapped[bytes | None] = mapped_column(LargeBinary, default=None)
    """Little-endian 32-bit floats."""


class PlanRow(Table):
    """How one query was to be answered, what was believed of it, and the most it could cost."""

    __tablename__ = "plans"
    __table_args__ = (Index("ix_plans_query_id", "query_id"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("queries.id", ondelete="CASCADE"))
    model: Mapped[str]
    strategy: Mapped[str]
    samples_max: Mapped[int]
    tokens_max: Mapped[int]
    ceiling_nanousd: Mapped[int | None] = mapped_column(default=None)
    price: Mapped[float] = mapped_column(default=0.0)
    """The window's shadow price: expected right answers per nano-dollar."""
    alpha: Mapped[float]
    beta: Mapped[float]
    tokens_p50: Mapped[int]
    tokens_p90: Mapped[int]
    predictor_version: Mapped[str]
    policy: Mapped[str] = mapped_column(default="fixed")
    propensity: Mapped[float] = mapped_column(default=1.0)
    """The chance with which this policy was chosen, for evaluation by inverse propensity."""
    created_at: Mapped[datetime]
    explored: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether the lot gave it the plain budget, so that what is learned from is not only what was chosen."""
    sample_nanousd: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))
    """What each sample of a wave was expected to cost; with the prompt, where that is 0."""
    gain: Mapped[float | None] = mapped_column(default=None)
    """The chance of a right answer that the plan was expected to reach."""
    cost_nanousd: Mapped[float | None] = mapped_column(default=None)
    """What the plan was expected to cost."""
    prompt_nanousd: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))
    """What a wave was expected to cost beside its samples."""
    tokens_mean: Mapped[float | None] = mapped_column(default=None)
    """A completion's expected length, where the predictor states one."""
    escalates: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether another model is asked where this plan finds no accepted answer."""


class Worker(Table):
    """A worker process, as its heartbeat says. One that falls silent loses its attempts."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    capacity: Mapped[int]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    stopped_at: Mapped[datetime | None] = mapped_column(default=None)
    quarantined_because: Mapped[str | None] = mapped_column(default=None)
    """Why its engine cannot be trusted; it gets no more work until an operator releases it."""
    engine: Mapped[str | None] = mapped_column(default=None)
    """The address of the model server it asks; NULL where the engine lives in the worker itself."""
    presence: Mapped[str | None] = mapped_column(default=None)
    """The lock that it holds while it lives, "file" or "advisory"; NULL where only its heartbeat tells."""


class Attempt(Table):
    """One funded execution of a plan. Its id fences: a worker whose attempt is lost can write nothing."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("query_id", "number"),
        Index("ix_attempts_state_dispatched_at", "state", "dispatched_at"),
        Index("ix_attempts_worker_id_state", "worker_id", "state"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("queries.id", ondelete="CASCADE"))
    plan_id: Mapped[int] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str]
    worker_id: Mapped[str | None] = mapped_column(default=None)
    created_at: Mapped[datetime]
    dispatched_at: Mapped[datetime | None] = mapped_column(default=None)
    started_at: Mapped[datetime | None] = mapped_column(default=None)
    finished_at: Mapped[datetime | None] = mapped_column(default=None)


class Wave(Table):
    """One round of samples of one attempt, and the money held for it."""

    __tablename__ = "waves"
    __table_args__ = (
        CheckConstraint("held_nanousd >= 0", name="held_is_not_negative"),
        Index("ix_waves_attempt_id", "attempt_id"),
        Index("ix_waves_query_id", "query_id"),
        Index("ix_waves_state", "state"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    query_id: Mapped[int] = mapped_column(ForeignKey("queries.id", ondelete="CASCADE"))
    batch_id: Mapped[str]
    tenant_id: Mapped[str]
    state: Mapped[str]
    samples_asked: Mapped[int]
    tokens_max: Mapped[int]
    model: Mapped[str]
    price_id: Mapped[int] = mapped_column(ForeignKey("prices.id"))
    held_nanousd: Mapped[int]
    prompt_tokens_held: Mapped[int]
    """The prompt tokens the hold was made for, to compare with what the server billed."""
    cost_nanousd: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    cached_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    reasoning_tokens: Mapped[int] = mapped_column(default=0)
    reserved_at: Mapped[datetime]
    reported_at: Mapped[datetime | None] = mapped_column(default=None)
    settled_at: Mapped[datetime | None] = mapped_column(default=None)
    latency_s: Mapped[float | None] = mapped_column(default=None)


class SampleRow(Table):
    """One completion, also one that was discarded or cut: all of them are paid for."""

    __tablename__ = "samples"
    __table_args__ = (
        UniqueConstraint("wave_id", "position"),
        Index("ix_samples_query_id", "query_id"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("queries.id", ondelete="CASCADE"))
    wave_id: Mapped[int] = mapped_column(ForeignKey("waves.id", ondelete="CASCADE"))
    position: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    message_json: Mapped[str | None] = mapped_column(Text, default=None)
    answer: Mapped[str | None] = mapped_column(Text, default=None)
    correct: Mapped[bool | None] = mapped_column(default=None)
    tokens: Mapped[int]
    reasoning_tokens: Mapped[int] = mapped_column(default=0)
    finish_reason: Mapped[str]
    logprob_mean: Mapped[float | None] = mapped_column(default=None)
    created_at: Mapped[datetime]


class Label(Table):
    """What somebody said later about an answer; the newest label of a query counts."""

    __tablename__ = "labels"
    __table_args__ = (Index("ix_labels_query_id", "query_id"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("queries.id", ondelete="CASCADE"))
    source: Mapped[str]
    correct: Mapped[bool]
    reference: Mapped[str | None] = mapped_column(Text, default=None)
    comment: Mapped[str | None] = mapped_column(Text, default=None)
    created_at: Mapped[datetime]
