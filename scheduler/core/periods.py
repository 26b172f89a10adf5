"""When a cap's period begins and ends, in the tenant's own time zone."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""When the one period of a `total` cap began."""


class Period(StrEnum):
    """How often a cap starts anew."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


def period_bounds(period: Period, now: datetime, timezone: str) -> tuple[datetime, datetime | None]:
    """The first instant of the period that holds `now`, and the first instant after it (None: it never ends).

    Days begin at local midnight, weeks on Monday, months on the 1st; a day can last 23 or 25 hours.
    """
    if period is Period.TOTAL:
        return BEGINNING, None
    zone = ZoneInfo(timezone)
    today = now.astimezone(zone).date()
    if period is Period.DAY:
        first, after = today, today + timedelta(days=1)
    elif period is Period.WEEK:
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    else:
        first = today.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    start, end = (datetime.combine(day, time.min, tzinfo=zone).astimezone(UTC) for day in (first, after))
    return start, end
