"""Rows of an input file as Arrow tables of a fixed number of rows, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from .csv_reader import read_csv
from .inputs import InputFile
from .jsonl_reader import read_jsonl
from .wanted import UNREADABLE, Drop, Wanted, unreadable

_ROWS_PER_READ = 65_536
_BYTES_PER_READ = 1024 * 1024


def read_chunks(
    file: InputFile,
    wanted: Wanted,
    rows: int,
    types: Mapping[str, pa.DataType] | None = None,
    drop: Drop | None = None,
) -> Iterator[pa.Table]:
    """Yield the file's rows in order, `rows` at a time; an empty file yields one empty table.

    Chunks depend on the file and the arguments alone, so a job that is run again cuts it the same way. With `drop`
    lines that are no rows are left out, and features with odd values are read as text.
    Raises BadInput that names the file and the column, or Retype when `types` must be other ones.
    """
    try:
        yield from _rechunk(_tables(file, wanted, types or {}, drop), rows)
    except UNREADABLE as error:
        raise unreadable(file.path, file.format, error) from None


def peek(file: InputFile, wanted: Wanted, types: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """Return a table with the file's columns and types and without rows; raises as `read_chunks` does."""
    try:
        return next(_tables(file, wanted, types or {}, None)).slice(0, 0)
    except UNREADABLE as error:
        raise unreadable(file.path, file.format, error) from None


def _tables(
    file: InputFile, wanted: Wanted, types: Mapping[str, pa.DataType], drop: Drop | None
) -> Iterator[pa.Table]:
    own = wanted.without(file.partition)
    if file.format == "csv":
        tables = read_csv(file.path, own, types, drop)
    elif file.format == "jsonl":
        tables = read_jsonl(file.path, own, types, drop)
    else:
        tables = _read_parquet(file, own) if file.format == "parquet" else _read_delta(file, own)
    return (_with_partition(table, file, wanted) for table in tables)


def _with_partition(table: pa.Table, file: InputFile, wanted: Wanted) -> pa.Table:
    """Add the columns that the folders name, unless the file has them itself; whole numbers as such, like Arrow does."""
    for name, value in file.partition.items():
        if name in table.column_names or name not in wanted.select([name]):
            continue
        if value is not None and value.isascii() and value.isdigit() and len(value) < 10:
            column = pa.repeat(pa.scalar(int(value), pa.int32()), table.num_rows)
        else:
            column = pa.repeat(pa.scalar(value, pa.string()), table.num_rows)
        table = table.append_column(name, column)
    return table


def _read_parquet(file: InputFile, wanted: Wanted) -> Iterator[pa.Table]:
    location = file.location
    # a row group's column as a whole is memory that is new each time; only where each request takes long is that better
    buffered = _BYTES_PER_READ if location.is_local else 0
    with location.read_anywhere() as source, pq.ParquetFile(source, buffer_size=buffered) as parquet:
        schema = parquet.schema_arrow
        wanted.check_names(file.path, schema.names)
        columns = wanted.select(schema.names)
        yield _subset(schema, columns)
        # read through at once, all that was read would stay in memory
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(_ROWS_PER_READ, [group], columns):
                yield pa.Table.from_batches([batch])


def _read_delta(file: InputFile, wanted: Wanted) -> Iterator[pa.Table]:
    from mlflow_flywheel.pipelines.delta import DeltaLog

    dataset = DeltaLog(file.path).dataset(file.stamp)
    wanted.check_names(file.path, dataset.schema.names)
    columns = wanted.select(dataset.schema.names)
    yield _subset(dataset.schema, columns)
    chosen = wanted.selection
    skipping = None if chosen is None else chosen.fragments(dataset.schema.field(chosen.column).type)
    # a version's files have no order of their own, and a job that is run again must see the same one
    for fragment in sorted(dataset.get_fragments(skipping), key=lambda fragment: fragment.path):
        for batch in fragment.to_batches(schema=dataset.schema, columns=columns, batch_size=_ROWS_PER_READ):
            yield pa.Table.from_batches([batch])


def _subset(schema: pa.Schema, columns: list[str]) -> pa.Table:
    return pa.schema([schema.field(name) for name in columns]).empty_table()


def _rechunk(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    count, yielded = 0, False
    for table in tables:
        held.append(table)
        count += table.num_rows
        while count >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows)
            held, count, yielded = [whole.slice(rows)], count - rows, True
    if count or not yielded:
        yield pa.concat_tables(held)
