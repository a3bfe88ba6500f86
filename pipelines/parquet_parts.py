"""Parquet files that grow by batches of rows: plain ones, and those of one commit to a partitioned table.

pyarrow tries a dictionary on every column, which triples the cost of columns whose values hardly repeat, as measured
numbers and ids do: here the first rows tell which columns get one. They tell too which columns do not get any smaller,
and are not compressed: to try costs as much as to write them. And where such numbers are in no order, the smallest and
largest of each row group are left out: they are much the same everywhere, so no reader can pass over any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

_LOOKED_AT = 4096
_REPEATED = 0.25
_CODEC = "snappy"
_DENSE = 0.95
_ROW_GROUP = 65_536


def open_parquet(where: Any, rows: pa.Table, files: fs.FileSystem | None = None) -> pq.ParquetWriter:
    """Open a Parquet file, by name or as an open file, for rows like these."""
    repeating = _repeating(rows)
    dense = _dense(rows, repeating)
    paths = _paths(rows.schema)
    codecs: dict[str, str] = dict.fromkeys(paths, _CODEC)
    codecs.update(dict.fromkeys(dense, "none"))
    unordered = {name for name, values in dense.items() if not _is_ordered(values)}
    return pq.ParquetWriter(
        where,
        rows.schema,
        filesystem=files,
        use_dictionary=repeating,
        compression=codecs,
        write_statistics=[path for path in paths if path not in unordered],
        write_batch_size=_ROW_GROUP,
    )


def _paths(schema: pa.Schema) -> list[str]:
    """Return what Parquet calls the columns, and the leaves of nested ones."""
    sink = pa.BufferOutputStream()
    pq.write_metadata(schema, sink)
    columns = pq.ParquetFile(sink.getvalue()).schema
    return [columns.column(i).path for i in range(len(columns))]


def _dense(rows: pa.Table, repeating: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of numbers that compression does not make smaller, with the first values, which tell so."""
    codec = pa.Codec(_CODEC)
    dense = {}
    for column in rows.schema:
        if pa.types.is_floating(column.type) and column.name not in repeating:
            values = rows[column.name].slice(0, _LOOKED_AT).drop_null().to_numpy()
            if len(codec.compress(values, asbytes=True)) > _DENSE * values.nbytes:
                dense[column.name] = values
    return dense


def _is_ordered(values: np.ndarray[Any, Any]) -> bool:
    return bool((values[1:] >= values[:-1]).all() or (values[1:] <= values[:-1]).all())


def _repeating(rows: pa.Table) -> list[str]:
    """Return the columns of which most values were there before, as far as the first rows tell."""
    head = rows.slice(0, _LOOKED_AT)
    enough = head.num_rows * _REPEATED
    return [
        column.name
        for column in head.schema
        if pa.types.is_dictionary(column.type)
        or (_is_flat(column.type) and pc.count_distinct(head[column.name]).as_py() <= enough)
    ]


def _is_flat(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not pa.types.is_boolean(kind)


@dataclass(frozen=True)
class Part:
    """One finished file: its path below the table, its partition, and what readers may skip it by."""

    path: str
    partition: str | None
    size: int
    rows: int
    bounds: dict[str, tuple[Any, Any, int]]
    """Smallest and largest value and number of nulls, by column."""


@dataclass
class _Growing:
    path: str
    held: list[pa.Table] = field(default_factory=list)
    held_rows: int = 0
    rows: int = 0
    bounds: dict[str, tuple[Any, Any, int]] = field(default_factory=dict)
    writer: pq.ParquetWriter | None = None


class PartWriter:
    """Writes the rows of one commit, a file for each value of the date column that the table is partitioned by.

    Rows are held back until they make a row group of decent size, so `write` keeps at most that much per partition.
    """

    def __init__(
        self, files: fs.FileSystem, name: str, partition_by: str | None, statistics: Sequence[str]
    ) -> None:
        self._files = files
        self._name = name
        self._partition_by = partition_by
        self._statistics = statistics
        self._parts: dict[str | None, _Growing] = {}

    def write(self, rows: pa.Table) -> None:
        """Add rows; their schema is the table's, and the same at each call."""
        for partition, some in self._split(rows):
            part = self._parts.get(partition)
            if part is None:
                folder = "" if partition is None else f"{self._partition_by}={partition}/"
                part = self._parts[partition] = _Growing(f"{folder}{self._name}.parquet")
            part.held.append(some)
            part.held_rows += some.num_rows
            if part.held_rows >= _ROW_GROUP:
                self._flush(part)

    def finish(self) -> list[Part]:
        """Complete the files and return them."""
        done = []
        for partition, part in self._parts.items():
            self._flush(part)
            assert part.writer is not None, "a part begins with rows"
            part.writer.close()
            size = self._files.get_file_info(part.path).size
            done.append(Part(part.path, partition, size, part.rows, part.bounds))
        return done

    def drop(self) -> None:
        """Remove what was written, after a failure or when it is not wanted."""
        for part in self._parts.values():
            if part.writer is not None:
                part.writer.close()
                self._files.delete_file(part.path)
        self._parts.clear()

    def _split(self, rows: pa.Table) -> list[tuple[str | None, pa.Table]]:
        if self._partition_by is None:
            return [(None, rows)]
        days = rows[self._partition_by]
        rows = rows.drop_columns([self._partition_by])
        bounds = pc.min_max(days).as_py()
        if bounds["min"] == bounds["max"]:
            return [(_text(bounds["min"]), rows)]
        return [(_text(day), rows.filter(pc.equal(days, day))) for day in pc.unique(days).to_pylist()]

    def _flush(self, part: _Growing) -> None:
        if not part.held:
            return
        rows = pa.concat_tables(part.held)
        part.held, part.held_rows = [], 0
        if part.writer is None:
            self._files.create_dir(part.path.rpartition("/")[0] or ".", recursive=True)
            part.writer = open_parquet(part.path, rows, self._files)
        part.writer.write_table(rows)
        part.rows += rows.num_rows
        for name in self._statistics:
            part.bounds[name] = _widened(part.bounds.get(name), rows[name])


def _text(day: date) -> str:
    return day.isoformat()


def _widened(before: tuple[Any, Any, int] | None, column: pa.ChunkedArray) -> tuple[Any, Any, int]:
    nulls = column.null_count + (before[2] if before is not None else 0)
    if pa.types.is_dictionary(column.type):  # its entries are few, and the bounds may be wider than the rows
        column = pa.chunked_array([chunk.dictionary for chunk in column.chunks], column.type.value_type)
    found = pc.min_max(column).as_py()
    known = [value for value in (found["min"], found["max"], *(before or ())[:2]) if value is not None]
    return (min(known), max(known), nulls) if known else (None, None, nulls)
