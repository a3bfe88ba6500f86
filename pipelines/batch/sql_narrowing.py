"""Which rows of a query's result a database is asked for, instead of all of them.

The query stays the user's: it becomes the inner one of `SELECT * FROM (...) WHERE ...`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Protocol

from mlflow_flywheel.pipelines.times import EPOCH

_FROM, _BEFORE = "flywheel_from", "flywheel_before"
_MILLISECOND, _DAY = timedelta(milliseconds=1), timedelta(days=1)


class Narrowing(Protocol):
    """Some rows of a query's result, by one column of it."""

    role: str
    """What the column is called where it is set."""
    in_order: bool
    """Whether they must come lowest first."""
    by_kind: bool
    """Whether the database must first say what its values look like."""

    @property
    def column(self) -> str:
        """Return the column that they go by."""

    def condition(self, quoted: str, some: Any) -> tuple[str, Mapping[str, Any]] | None:
        """Return what a database is to hold rows against, and the values in it; None when it cannot tell.

        `quoted` is the column as the database writes it, `some` one of its values that is not null, if it was asked.
        """


@dataclass(frozen=True)
class RowsAbove:
    """The rows whose column is above a mark; None takes all that have a value."""

    role, in_order, by_kind = "watermark", True, False
    column: str
    mark: Any = None

    def condition(self, quoted: str, some: Any) -> tuple[str, Mapping[str, Any]]:
        if self.mark is None:
            return f"{quoted} IS NOT NULL", {}
        return f"{quoted} > :flywheel_watermark", {"flywheel_watermark": self.mark}


@dataclass(frozen=True)
class RowsWithin:
    """At least the rows whose time is in [start, end), of which one may be None; whoever reads them looks once more.

    Databases compare times, dates and numbers (milliseconds since 1970) as we do, but not text that holds times.
    """

    role, in_order, by_kind = "timestamp_column", False, True
    column: str
    start: datetime | None
    end: datetime | None

    def condition(self, quoted: str, some: Any) -> tuple[str, Mapping[str, Any]] | None:
        bounds = {}
        if self.start is not None:
            bounds[_FROM] = _bound(self.start, some, math.floor)
        if self.end is not None:
            bounds[_BEFORE] = _bound(self.end, some, math.ceil)
        if None in bounds.values():
            return None
        parts = {_FROM: f"{quoted} >= :{_FROM}", _BEFORE: f"{quoted} < :{_BEFORE}"}
        return " AND ".join(parts[name] for name in bounds), bounds


def _bound(moment: datetime, like: Any, rounded: Callable[[float], int]) -> date | int | None:
    """Return a moment as a value of a column that holds `like`; None for a column of another kind."""
    if isinstance(like, bool):
        return None
    if isinstance(like, datetime):  # what has no zone is UTC
        return moment if like.tzinfo is not None else moment.astimezone(timezone.utc).replace(tzinfo=None)
    if isinstance(like, date):
        return (EPOCH + rounded((moment - EPOCH) / _DAY) * _DAY).date()
    if isinstance(like, (int, float, Decimal)):
        return rounded((moment - EPOCH) / _MILLISECOND)
    return None
