"""How far a deployment's incremental jobs have come in a column that only grows.

A mark is the largest value that was scored: a number or a time of files and Delta tables, or whatever a database
compares. It is kept as JSON that says what it is, so that it comes back as the very value that it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import TIMESTAMP
from mlflow_flywheel.pipelines.times import as_utc

from .columns import is_text, parsed_times
from .state import Journal, entries_of

_KINDS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "time": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "text": (str, str, str),
}


class Watermarks:
    """The marks of one column, a line for each job that moved it; the last one is in force."""

    def __init__(self, state_dir: Path, column: str) -> None:
        self._journal = Journal(state_dir / "watermark.jsonl")
        self._column = column

    @property
    def mark(self) -> Any:
        """Return the mark as JSON; None before the first success."""
        return self._own[-1]["mark"] if self._own else None

    def advance(self, job_id: str, mark: Any) -> None:
        """Remember, for good, how far a job came; one that says it again changes nothing."""
        if mark is not None and all(entry["job"] != job_id for entry in self._own):
            self._journal.append({"column": self._column, "job": job_id, "mark": mark})

    def close(self) -> None:
        self._journal.close()

    @property
    def _own(self) -> list[dict[str, Any]]:
        return [entry for entry in self._journal.entries if entry["column"] == self._column]


def mark_before(state_dir: Path, column: str) -> datetime | None:
    """Return the newest mark of a column where it is a time, without opening `Watermarks`: a run may be at work."""
    entries = entries_of(state_dir / "watermark.jsonl")
    own = [from_json(entry["mark"]) for entry in entries if entry["column"] == column]
    return as_utc(own[-1]) if own and isinstance(own[-1], datetime) else None


def to_json(value: Any, column: str) -> Any:
    """Return a mark as JSON. Raises BadInput for a value of a kind that cannot be kept."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    for kind, (type_, write, _) in _KINDS.items():
        if isinstance(value, type_):
            return {kind: write(value)}
    raise BadInput(
        f"watermark column {column!r} holds {value!r} ({type(value).__name__}); name a column of numbers or times"
    )


def from_json(mark: Any) -> Any:
    """Return the value of a mark."""
    if not isinstance(mark, dict):
        return mark
    ((kind, text),) = mark.items()
    return _KINDS[kind][2](text)


def as_text(mark: Any) -> str | None:
    """Return a mark as people read it."""
    return None if mark is None else str(next(iter(mark.values())) if isinstance(mark, dict) else mark)


def largest(values: Iterable[Any], column: str) -> Any:
    """Return the largest of some values, without Nones. Raises BadInput for numbers beside times."""
    try:
        return max((value for value in values if value is not None), default=None)
    except TypeError:
        raise BadInput(_mixed(column)) from None


def ordered(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return a column as numbers or UTC times, which can be compared; text is read as one or the other.

    Raises BadInput for anything else.
    """
    kind = column.type
    if is_text(kind):
        for number in (pa.int64(), pa.float64()):
            try:
                return column.cast(number)
            except pa.ArrowInvalid:
                continue
        return parsed_times(column, name)
    if pa.types.is_integer(kind):
        return column
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_null(kind):
        return column.cast(TIMESTAMP, safe=False)  # what is finer than a microsecond counts as equal
    raise BadInput(f"watermark column {name!r} must hold numbers or times, found {kind}")


def beyond(column: pa.ChunkedArray, mark: Any, name: str) -> pa.ChunkedArray:
    """Return which values of an `ordered` column are above a mark (any, for None); nulls never are."""
    if mark is None:
        return pc.is_valid(column)
    if pa.types.is_null(column.type) or column.null_count == len(column):
        return pa.chunked_array([pa.array([False] * len(column), pa.bool_())])
    if isinstance(mark, datetime) != pa.types.is_timestamp(column.type):
        raise BadInput(_mixed(name))
    limit = pa.scalar(mark, TIMESTAMP) if isinstance(mark, datetime) else pa.scalar(mark)
    return pc.fill_null(pc.greater(column, limit), False)


def _mixed(column: str) -> str:
    return (
        f"watermark column {column!r} holds numbers in one place and times in another, which cannot be compared; "
        "give it one meaning, or name another column"
    )
