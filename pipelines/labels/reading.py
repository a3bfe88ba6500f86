"""Label files piece by piece, in bounded memory: CSV and JSON Lines (compressed or not) and Parquet.

Columns that are none of a label's are passed over. Text stays as it is written (an id "007" is no number); in CSV an
empty value is a missing one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.batch.inputs import InputFile
from mlflow_flywheel.pipelines.errors import BadInput, nearest
from mlflow_flywheel.pipelines.feedback import LABEL_FIELDS

_BLOCK_BYTES = 4 * 1024 * 1024
_LONGEST_LINE = 64 * 1024 * 1024
_ROWS_PER_READ = 65_536
_IDS = ("prediction_id", "client_request_id")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Piece:
    """Rows that were read together: a table of label columns, or objects where they make no table.

    `place` tells where the row of an index stands: its line, or in a Parquet file its row, both from 1. `refused` are
    places that hold no row at all, with the reason. `read` is the share of the file that was read by now, None where
    nobody knows.
    """

    rows: pa.Table | Sequence[Mapping[str, Any]]
    place: Callable[[int], int]
    refused: Sequence[tuple[int, str]] = ()
    read: float | None = None


def read_labels(file: InputFile) -> Iterator[Piece]:
    """Yield the rows of a label file in their order.

    Raises BadInput for a file that cannot be read, or without the columns that a label needs.
    """
    readers = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}
    if file.format not in readers:
        raise BadInput(f"{file.path!r} is a table, and labels come in files: CSV, JSON Lines or Parquet")
    try:
        yield from readers[file.format](file)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"label file {file.path!r} cannot be read: {str(error).splitlines()[0]}") from None


def _read_parquet(file: InputFile) -> Iterator[Piece]:
    with file.location.read_anywhere() as source, pq.ParquetFile(source) as parquet:
        columns = _label_columns(file, parquet.schema_arrow.names)
        total, first = parquet.metadata.num_rows, 1
        # read through at once, all that was read would stay in memory
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(_ROWS_PER_READ, [group], columns):
                done = first - 1 + batch.num_rows
                yield Piece(pa.Table.from_batches([batch]), first.__add__, read=done / total)
                first += batch.num_rows


def _read_csv(file: InputFile) -> Iterator[Piece]:
    header: list[str] | None = None
    for block in _blocks(file, quotes=True):
        if header is None:
            header, block = _split_header(block)
            columns = _label_columns(file, header)
        yield _csv_piece(block, header, columns)
    if header is None:
        raise BadInput(f"label file {file.path!r} is empty: a CSV file needs at least its header line")


def _read_jsonl(file: InputFile) -> Iterator[Piece]:
    for block in _blocks(file, quotes=False):
        records: list[dict[str, Any]] = []
        lines: list[int] = []
        refused = []
        for number, line in enumerate(block.data.split(b"\n"), block.first_line):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                refused.append((number, f"no JSON: {error}"))
                continue
            if isinstance(record, dict):
                records.append({name: record[name] for name in LABEL_FIELDS if record.get(name) is not None})
                lines.append(number)
            else:
                refused.append((number, "must be an object with prediction_id and label"))
        yield Piece(_as_table(records), lines.__getitem__, refused, block.read)


def _as_table(records: list[dict[str, Any]]) -> pa.Table | list[dict[str, Any]]:
    """Return a table where each column has one type, else the records as they are."""
    try:
        return pa.table({name: pa.array([r.get(name) for r in records]) for name in LABEL_FIELDS})
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return records


def _label_columns(file: InputFile, names: Sequence[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1} & set(LABEL_FIELDS))
    if twice:
        raise BadInput(f"label file {file.path!r} has the column {twice[0]!r} twice; remove one")
    if "label" not in names or not {*_IDS} & {*names}:
        lacking = "label" if "label" not in names else _IDS[0]
        raise BadInput(
            f"label file {file.path!r} has the columns {', '.join(names)}; it needs label and prediction_id or "
            f"client_request_id{nearest(lacking, names)}"
        )
    return [name for name in names if name in LABEL_FIELDS]


@dataclass(frozen=True)
class _Block:
    """Whole rows of a text file, the line of the first one, and how much of the file was read with them."""

    data: bytes
    first_line: int
    read: float | None


def _blocks(file: InputFile, quotes: bool) -> Iterator[_Block]:
    """Cut a text file at line ends; with `quotes` at such as stand in no quoted value."""
    rest, line, done = b"", 1, 0
    with file.location.read() as stream:
        while data := rest + stream.read(_BLOCK_BYTES):
            is_last = len(data) == len(rest)
            if line == 1 and not done:
                data = data.removeprefix(_BOM)
            cut = len(data) if is_last else data.rfind(b"\n") + 1
            while quotes and not is_last and data.count(b'"', 0, cut) % 2:
                cut = data.rfind(b"\n", 0, data.rfind(b'"', 0, cut)) + 1
            if not cut and len(data) > _LONGEST_LINE:
                raise BadInput(
                    f"label file {file.path!r}: line {line} is longer than {_LONGEST_LINE} bytes, or a quote in it is "
                    "never closed"
                )
            rest, done = data[cut:], done + cut
            if cut:
                yield _Block(data[:cut], line, None if file.path.endswith(".gz") else done / file.size)
                line += data.count(b"\n", 0, cut)


def _split_header(block: _Block) -> tuple[list[str], _Block]:
    reader = csv.reader(io.StringIO(block.data.decode(), newline=""))
    header = next((row for row in reader if row), [])
    rest = block.data.split(b"\n", reader.line_num)[reader.line_num :]
    return header, _Block(rest[0] if rest else b"", block.first_line + reader.line_num, block.read)


def _csv_piece(block: _Block, header: list[str], columns: list[str]) -> Piece:
    lines = _CsvLines(block, len(header))
    odd: list[tuple[int, str]] = []

    def leave_out(row: Any) -> str:
        odd.append((row.number, f"must have {row.expected_columns} values, found {row.actual_columns}"))
        return "skip"

    text = dict.fromkeys(columns, pa.string())
    if not block.data.strip():
        return Piece(pa.schema(list(text.items())).empty_table(), lines.of_row, read=block.read)
    rows = pacsv.read_csv(
        io.BytesIO(block.data),
        pacsv.ReadOptions(use_threads=False, block_size=len(block.data) + 1, column_names=header),
        pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=leave_out),
        pacsv.ConvertOptions(
            column_types=text, include_columns=columns, null_values=[""], strings_can_be_null=True
        ),
    )
    return Piece(
        rows, lines.of_row, [(lines.of_any_row(number), reason) for number, reason in odd], block.read
    )


class _CsvLines:
    """Finds the lines of rows in a block; only asked for rows that are complained about."""

    def __init__(self, block: _Block, width: int) -> None:
        self._block = block
        self._width = width

    def of_row(self, index: int) -> int:
        """Return the line of a row that has as many values as the header."""
        return self._found[1][index]

    def of_any_row(self, number: int) -> int:
        """Return the line of a row by its number from 1, empty lines not counted."""
        return self._found[0][number - 1]

    @cached_property
    def _found(self) -> tuple[list[int], list[int]]:
        every, fitting = [], []
        line = self._block.first_line
        reader = csv.reader(io.StringIO(self._block.data.decode(), newline=""))
        for row in reader:
            if row:
                every.append(line)
                if len(row) == self._width:
                    fitting.append(line)
            line = self._block.first_line + reader.line_num
        return every, fitting
