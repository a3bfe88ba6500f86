"""Hours of the day in which the loop starts nothing and wakes nobody: "22:00-06:00"."""

from __future__ import annotations

import re
from datetime import datetime, time
from zoneinfo import ZoneInfo

from pydantic import model_serializer

from mlflow_flywheel.pipelines.config import Frozen

_SPAN = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")


class QuietHours(Frozen):
    """A span of every day, [start, end) by the clock of a time zone; over midnight when it ends before it starts."""

    start: time
    end: time

    @model_serializer
    def _text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"

    def hold(self, moment: datetime, zone: str) -> bool:
        """Whether the moment lies in them."""
        now = moment.astimezone(ZoneInfo(zone)).time()
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end


def parse_quiet_hours(value: object) -> object:
    """Read spans from a comma-separated string, or a list of such strings. Raises ValueError for pydantic."""
    if isinstance(value, str):
        return tuple(_span(part.strip()) for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)):
        return tuple(_span(part) if isinstance(part, str) else part for part in value)
    return value


def _span(text: str) -> QuietHours:
    match = _SPAN.fullmatch(text)
    complaint = f'{text!r} are no hours of the day; write a start and an end, such as "22:00-06:00"'
    if match is None:
        raise ValueError(complaint)
    hours, minutes, end_hours, end_minutes = map(int, match.groups())
    try:
        start, end = time(hours, minutes), time(end_hours, end_minutes)
    except ValueError:
        raise ValueError(complaint) from None
    if start == end:
        raise ValueError(complaint)
    return QuietHours(start=start, end=end)
