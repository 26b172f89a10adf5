"""Kinds of values that several replies and requests share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from scheduler.core.pricing import USD_MAX, USD_PER_MTOK_MAX, format_usd
from scheduler.errors import InvalidRequest
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


WITHOUT_NUL = {"pattern": "^[^\\u0000]*$"}
"""For the OpenAPI document."""
Text = Annotated[str, AfterValidator(_without_nul), Field(json_schema_extra=WITHOUT_NUL)]
ShortText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256),
    AfterValidator(_without_nul),
    Field(json_schema_extra=WITHOUT_NUL),
]


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no amounts")
    return value


class ExpiresAfter(Body):
    """When a file is deleted by itself, in OpenAI's words."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=EXPIRES_AFTER_MIN_S, le=EXPIRES_AFTER_MAX_S)]


def _money(pattern: str, least: dict[str, int], most: int) -> WithJsonSchema:
    """How an amount is described; `scheduler.core.pricing` checks it, and says better what is wrong."""
    return WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", "maximum": most, **least}],
            "description": "A decimal number, best as a string: a JSON float may have lost digits.",
            "examples": ["0.25"],
        }
    )


USD_PATTERN = r"^(0\.[0-9]{0,8}[1-9]|[1-9][0-9]{0,7}(\.[0-9]{1,9})?)$"
Amount = Annotated[
    str | int | Decimal, BeforeValidator(_no_truth_value), _money(USD_PATTERN, {"exclusiveMinimum": 0}, int(USD_MAX))
]
TokenPrice = Annotated[
    str | int | Decimal,
    BeforeValidator(_no_truth_value),
    _money(r"^[0-9]{1,6}(\.[0-9]{1,3})?$", {"minimum": 0}, int(USD_PER_MTOK_MAX)),
]


def _number_only(value: object) -> object:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("give a whole number, not text")
    return value


NumberOnly = BeforeValidator(_number_only)
"""JSON's own numbers, of which 4.0 is as whole as 4, and no text that looks like one."""


def _no_number(value: object) -> object:
    is_number = isinstance(value, int | float) or (
        isinstance(value, str) and value.lstrip("+-").replace(".", "", 1).isdigit()
    )
    if is_number:
        raise ValueError("write a date or an instant, like 2026-03-01 or 2026-03-01T12:00:00Z")
    return value


Instant = Annotated[datetime | None, BeforeValidator(_no_number)]


def in_utc(value: datetime | None, name: str) -> datetime | None:
    """The instant in UTC, which is also meant where no zone is named."""
    if value is None:
        return None
    try:
        return value.astimezone(UTC) if value.tzinfo is not None else value.replace(tzinfo=UTC)
    except OverflowError:
        raise InvalidRequest(f"{name}: no calendar has that instant in UTC.", param=name) from None


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
