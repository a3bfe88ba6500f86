"""Times as callers write them."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def utc_now() -> datetime:
    """Return the present, aware."""
    return datetime.now(timezone.utc)


def parse_time(value: Any) -> datetime:
    """Read ISO 8601 (naive means UTC), milliseconds since 1970, a date or a datetime; the answer is aware.

    Raises ValueError for anything else.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00").replace("z", "+00:00"))
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    try:
        if isinstance(value, datetime):
            return as_utc(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return EPOCH + timedelta(milliseconds=value)
    except OverflowError:  # a time before the year 1 or after 9999
        raise ValueError(value) from None
    raise ValueError(value)


def as_utc(moment: datetime) -> datetime:
    """Return the moment in UTC; a naive one is taken as UTC, as everywhere in the inference table."""
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
