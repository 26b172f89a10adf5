"""Kinds of values that several replies and requests share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from scheduler.core.pricing import format_usd
from scheduler.files import EXPIRES_AFTER_MAX_S, EXPIRES_AFTER_MIN_S

T = TypeVar("T")


class Reply(BaseModel):
    """An object that is sent."""

    model_config = ConfigDict(ser_json_inf_nan="null")


class Body(BaseModel):
    """An object that is received; a key it does not know is an error that names it."""

    model_config = ConfigDict(extra="forbid")


class Page(Reply, Generic[T]):
    """A list; `has_more` says whether there is more after it."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("it holds a NUL character, which no text needs")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_without_nul)]


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no amounts")
    return value


class ExpiresAfter(Body):
    """When a file is deleted by itself, in OpenAI's words."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=EXPIRES_AFTER_MIN_S, le=EXPIRES_AFTER_MAX_S)]


Amount = Annotated[
    str | int | Decimal,
    BeforeValidator(_no_truth_value),
    Field(description="A decimal number, best as a string: a JSON float may have lost digits.", examples=["0.25"]),
]


class Identified(Protocol):
    """What has an id."""

    @property
    def id(self) -> Any: ...


Object = TypeVar("Object", bound=Identified)


def page(data: Sequence[Object], *, has_more: bool) -> Page[Object]:
    """A page as OpenAI's clients walk through them: by the id of its last object."""
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return Page(data=list(data), first_id=first, last_id=last, has_more=has_more)


def usd(nanousd: int) -> str:
    """An amount in USD as a decimal string, exact."""
    return format_usd(nanousd).removesuffix(" USD")


def usd_or_none(nanousd: int | None) -> str | None:
    """The same where there may be none."""
    return None if nanousd is None else usd(nanousd)


def epoch(instant: datetime) -> int:
    """Seconds since 1970, as OpenAI writes instants."""
    return int(instant.timestamp())


def epoch_or_none(instant: datetime | None) -> int | None:
    """The same where there may be none."""
    return None if instant is None else epoch(instant)
