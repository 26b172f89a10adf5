"""What serves: the language models workers have seen, and the predictors that were fitted."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Table


class LlmRow(Table):
    """A served language model, as a worker last saw it."""

    __tablename__ = "llms"

    name: Mapped[str] = mapped_column(primary_key=True)
    context_tokens: Mapped[int]
    tokenizer_path: Mapped[str | None] = mapped_column(default=None)
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    template_tokens: Mapped[int | None] = mapped_column(default=None)
    """What its chat template adds to a chat beyond our count of it."""
    template_system_tokens: Mapped[int | None] = mapped_column(default=None)
    """The same, where the chat has a system message."""


class PredictorRow(Table):
    """A fitted predictor: where it is, what it scored on held-out rows, and whether it is in use."""

    __tablename__ = "predictors"

    version: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    """champion, challenger (asked for or being judged), kept_out or retired."""
    path: Mapped[str | None] = mapped_column(default=None)
    sha256: Mapped[str | None] = mapped_column(default=None)
    card_json: Mapped[str] = mapped_column(Text)
    because: Mapped[str]
    """Why it was promoted or kept out."""
    created_at: Mapped[datetime]
    promoted_at: Mapped[datetime | None] = mapped_column(default=None)
    retired_at: Mapped[datetime | None] = mapped_column(default=None)
    unusable_because: Mapped[str | None] = mapped_column(Text, default=None)
    """Why the daemon could not use it when it last tried, and plans with plain priors instead."""
    lessons_json: Mapped[str | None] = mapped_column(Text, default=None)
    """By model, what its samples say beyond their number; workers weigh evidence with it."""
