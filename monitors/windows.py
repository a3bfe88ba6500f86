"""Spans of event time: what a monitor looks at, and durations as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.times import as_utc

_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile(r"(\d+)\s*([wdhms])")


@dataclass(frozen=True)
class Window:
    """Half-open span of event time, [start, end), in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", as_utc(self.start))
        object.__setattr__(self, "end", as_utc(self.end))
        if self.end <= self.start:
            raise BadInput(f"window {self} ends before it starts; give an end after the start")

    @property
    def length(self) -> timedelta:
        """How long the window is."""
        return self.end - self.start

    def before(self) -> Window:
        """Return the window of the same length that ends where this one starts."""
        return Window(self.start - self.length, self.start)

    def __str__(self) -> str:
        return f"[{self.start:%Y-%m-%d %H:%M}, {self.end:%Y-%m-%d %H:%M})"


def epoch_ms(moment: datetime) -> int:
    """Return milliseconds since 1970, which is how MLflow stamps metrics."""
    return int(as_utc(moment).timestamp() * 1000)


def last_window(as_of: datetime, length: timedelta) -> Window:
    """Return the window of that length that ends at `as_of`."""
    return Window(as_utc(as_of) - length, as_of)


def tile(start: datetime, end: datetime, length: timedelta) -> Iterator[Window]:
    """Yield the whole windows of that length from `start` on; a last one that is cut short by `end` is left out."""
    if length <= timedelta(0):
        raise BadInput(f"a window of {length} cannot tile a span; give a positive length")
    start, end = as_utc(start), as_utc(end)
    while start + length <= end:
        yield Window(start, start + length)
        start += length


def parse_duration(text: str) -> timedelta:
    """Return the length of "30d", "12h", "1d 12h", "90m", "45s" or "2w". Raises BadInput for anything else."""
    parts = _DURATION.findall(text.lower())
    if not parts or _DURATION.sub("", text.lower()).strip():
        raise BadInput(
            f'{text!r} is not a duration; write a number and w, d, h, m or s, such as "30d" or "12h"'
        )
    try:
        return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise BadInput(f'{text!r} is too long a duration; write something like "365d"') from None


def format_duration(length: timedelta) -> str:
    """Write a duration so that `parse_duration` reads it back; parts of a second are dropped."""
    left, parts = int(length.total_seconds()), []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def _read_duration(value: object) -> object:
    try:
        return parse_duration(value) if isinstance(value, str) else value
    except BadInput as error:
        raise ValueError(error.message) from None


Duration = Annotated[
    timedelta, BeforeValidator(_read_duration), PlainSerializer(format_duration, return_type=str)
]
"""A timedelta field of a pydantic model that is written "30d" in configuration and in JSON."""
