"""Which rows of its input a job takes: those of a span of time, or those above a watermark.

A selection is fixed when the job is planned, so that a job that goes on takes the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import TIMESTAMP

from .answering import Chunk
from .columns import event_times, is_text, parsed_or_null
from .inputs import InputFile
from .wanted import UNREADABLE
from .watermark import beyond, from_json, largest, ordered

# Of coarser types a bound would have to be rounded.
_EXACT_TIMES = (TIMESTAMP, pa.timestamp("us"))


class Selection(Protocol):
    """Takes some rows and leaves the others."""

    @property
    def column(self) -> str:
        """Return the column that it goes by."""

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return which rows are taken. Raises BadInput when their column cannot tell."""

    def fragments(self, kind: pa.DataType) -> pc.Expression | None:
        """Return what a part of a data set must be able to fulfil to hold such rows; None when nothing can be said."""

    def between(self, low: Any, high: Any) -> bool:
        """Tell whether values from `low` to `high` may be of rows that are taken."""


@dataclass(frozen=True)
class Span:
    """Rows whose time is in [start, end); None is no bound.

    With `keep_odd` those whose time cannot be read are taken too, for others to say what is wrong with them.
    """

    column: str
    start: datetime | None
    end: datetime | None
    keep_odd: bool = False

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        given = rows[self.column]
        if self.keep_odd and is_text(given.type):
            times = parsed_or_null(given)
            odd = pc.and_(pc.is_valid(given), pc.is_null(times))
            return pc.or_(odd, self._within(times))
        return self._within(pa.chunked_array([event_times(rows, self.column)]))

    def fragments(self, kind: pa.DataType) -> pc.Expression | None:
        if kind not in _EXACT_TIMES:
            return None
        field = pc.field(self.column)
        expression = pc.scalar(True)
        if self.start is not None:
            expression = expression & (field >= _as_in(self.start, kind))
        if self.end is not None:
            expression = expression & (field < _as_in(self.end, kind))
        return expression

    def between(self, low: Any, high: Any) -> bool:
        times = event_times(pa.table({self.column: [low, high]}), self.column)
        assert times is not None, "a column is named"
        first, last = times.to_pylist()
        return (self.start is None or last >= self.start) and (self.end is None or first < self.end)

    def _within(self, times: pa.ChunkedArray) -> pa.ChunkedArray:
        taken = pc.is_valid(times)
        if self.start is not None:
            taken = pc.and_(
                taken, pc.fill_null(pc.greater_equal(times, pa.scalar(self.start, TIMESTAMP)), False)
            )
        if self.end is not None:
            taken = pc.and_(taken, pc.fill_null(pc.less(times, pa.scalar(self.end, TIMESTAMP)), False))
        return taken


@dataclass(frozen=True)
class Above:
    """Rows whose column is above a mark, a number or a time; all that have a value when there is no mark yet."""

    column: str
    mark: Any

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        return beyond(ordered(rows[self.column], self.column), self.mark, self.column)

    def fragments(self, kind: pa.DataType) -> pc.Expression | None:
        is_time = isinstance(self.mark, datetime)
        if self.mark is None or not (kind in _EXACT_TIMES if is_time else pa.types.is_integer(kind)):
            return None
        return pc.field(self.column) > (_as_in(self.mark, kind) if is_time else pa.scalar(self.mark))

    def between(self, low: Any, high: Any) -> bool:
        return bool(pc.any(self.mask(pa.table({self.column: [high]}))).as_py())


class Taken:
    """The chunks of a file with the rows that a selection takes.

    `newest` is the largest value of a watermark's column among them, `columns` are the types of the file's columns.
    """

    def __init__(self, chunks: Iterator[Chunk], selection: Selection | None) -> None:
        self._chunks = chunks
        self._selection = selection
        self.newest: Any = None
        self.columns: dict[str, str] = {}

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            if not self.columns:
                self.columns = {column.name: str(column.type) for column in chunk.rows.schema}
            yield chunk if self._selection is None else self._taken(chunk, self._selection)

    def _taken(self, chunk: Chunk, selection: Selection) -> Chunk:
        places = pc.indices_nonzero(selection.mask(chunk.rows))
        rows = chunk.rows if len(places) == chunk.rows.num_rows else chunk.rows.take(places)
        if isinstance(selection, Above) and rows.num_rows:
            values = ordered(rows[selection.column], selection.column)
            self.newest = largest([self.newest, pc.max(values).as_py()], selection.column)
        return Chunk(chunk.number, chunk.first_row, rows, pc.add(places.cast(pa.int64()), chunk.first_row))


def selection_of(config: BatchConfig, since: Any) -> Selection | None:
    """Return which rows a job takes, or None for all; `since` is the mark, as JSON, at which it was planned."""
    if config.query is None and config.watermark is not None:
        return Above(config.watermark, from_json(since))
    if config.timestamp_column is not None and (config.start is not None or config.end is not None):
        return Span(config.timestamp_column, config.start, config.end, config.on_error == "skip")
    return None


def may_hold(file: InputFile, selection: Selection) -> bool:
    """Tell whether a file may have rows that are taken: its folders, or a Parquet file's statistics, may know better."""
    if selection.column in file.partition:
        value = file.partition[selection.column]
        bounds = [(value, value)] if value is not None else []
    else:
        found = _bounds(file, selection.column) if file.format == "parquet" else None
        if found is None:
            return True
        bounds = found
    try:
        return any(selection.between(low, high) for low, high in bounds)
    except BadInput:  # whoever reads it says so, and names the file
        return True


def _bounds(file: InputFile, column: str) -> list[tuple[Any, Any]] | None:
    """Return the smallest and the largest value of each row group; None where the file does not say.

    Text is in another order than the numbers or times that it is read as.
    """
    try:
        with file.location.read_anywhere() as source, pq.ParquetFile(source) as parquet:
            metadata = parquet.metadata
            paths = [parquet.schema.column(i).path for i in range(metadata.num_columns)]
            if column not in paths:
                return None
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            known = [group.column(paths.index(column)).statistics for group in groups if group.num_rows]
            if not known or any(found is None or not found.has_min_max for found in known):
                return None
            if any(isinstance(found.max, (str, bytes)) for found in known):
                return None
            return [(found.min, found.max) for found in known]
    except UNREADABLE:  # whoever reads it says so
        return None


def _as_in(moment: datetime, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(moment, TIMESTAMP).cast(kind)
