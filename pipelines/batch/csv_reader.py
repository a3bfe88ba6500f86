"""CSV in Arrow tables: features with the signature's types, other columns with inferred ones.

What counts as a missing value ("", NA, NaN, null, ...) is pandas' list, so that a model is given what it was trained
on when its training data came through `pandas.read_csv`, as MLflow's own batch command would.

Arrow's streaming reader uses one core. Here blocks of whole lines are parsed side by side, as long as no quote says
that a line may not end where it seems to; from the first quote on the streaming reader goes on.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pacsv

from mlflow_flywheel.pipelines.errors import BadInput

from .flow import cores, stand_back
from .locations import Location
from .wanted import Drop, Retype, Wanted, misfit, unreadable

_BLOCK_BYTES = 2 * 1024 * 1024
_ROOM_FOR_LINE = 64 * 1024
_LONGEST_LINE = 64 * 1024 * 1024
_STREAMED_BYTES = 8 * 1024 * 1024
_CONVERSION = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to ([^:]+): (.*)", re.DOTALL
)
_ROW = re.compile(r"Row #(\d+)")
_MISSING = pacsv.ConvertOptions().null_values
_MISSING_WITHOUT_N = [text for text in _MISSING if "n" not in text.lower()]
"""All that can be missing where there is no N: to compare each number with a list of words is a tenth of parsing it."""


def read_csv(
    path: str, wanted: Wanted, types: Mapping[str, pa.DataType], drop: Drop | None = None
) -> Iterator[pa.Table]:
    """Yield the rows; one table without any when there are none.

    A column outside the signature has the type that its first block suggests; when a later block does not fit, Retype
    says to read it as text.
    """
    with Location.of(path).read() as stream:
        header, start, rest = _header(path, stream)
        wanted.check_names(path, header)
        parser = _Parser(path, wanted, types, drop, header)
        blocks = _blocks(_Place(path, start, 1 if drop else None), stream, rest, parser.free)
        first = next(blocks, None)
        if first is None:
            yield parser.empty()
            return
        if isinstance(first, _Quoted):
            yield from parser.stream(first)
            return
        table = parser.parse(first)
        parser.keep_types(table.schema)
        yield table
        with ThreadPoolExecutor(cores(), "batch-csv", stand_back) as pool:
            yield from _side_by_side(parser, blocks, pool)


def _side_by_side(
    parser: _Parser, blocks: Iterator[_Block | _Quoted], pool: ThreadPoolExecutor
) -> Iterator[pa.Table]:
    waiting: deque[Future[pa.Table]] = deque()
    try:
        for block in blocks:
            if isinstance(block, _Quoted):
                while waiting:
                    yield waiting.popleft().result()
                yield from parser.stream(block)
                return
            waiting.append(pool.submit(parser.parse, block))
            if len(waiting) > 2 * cores():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@dataclass(frozen=True)
class _Place:
    """Where something begins in a file: how many bytes are above it and, where that was counted, how many lines."""

    path: str
    start: int
    lines: int | None

    def after(self, data: bytearray, end: int) -> _Place:
        """Return the place behind data that begin here."""
        lines = None if self.lines is None else self.lines + data.count(b"\n", 0, end)
        return _Place(self.path, self.start + end, lines)

    @property
    def lines_before(self) -> int:
        """Return how many lines are above; a file that fits is never asked, so the file is read again for it."""
        if self.lines is not None:
            return self.lines
        lines, left = 0, self.start
        with Location.of(self.path).read() as stream:
            while left and (data := stream.read(min(left, _BLOCK_BYTES))):
                lines, left = lines + data.count(b"\n"), left - len(data)
        return lines


@dataclass(frozen=True)
class _Block:
    """Whole lines of a file, without a quote: what `data` begins with. Whoever has parsed them gives `data` back."""

    data: bytearray
    size: int
    place: _Place

    @property
    def missing(self) -> list[str]:
        """Return the spellings of a missing value that can be in it."""
        is_wordless = self.data.find(b"n", 0, self.size) < 0 and self.data.find(b"N", 0, self.size) < 0
        return _MISSING_WITHOUT_N if is_wordless else _MISSING


class _Quoted(io.RawIOBase):
    """The rest of a file, from the line on in which the first quote may be."""

    def __init__(self, begun: bytes, stream: Any, place: _Place) -> None:
        super().__init__()
        self._begun = begun
        self._stream = stream
        self.place = place

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._begun[: len(buffer)] or self._stream.read(len(buffer))
        self._begun = self._begun[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class _Parser:
    """Parses blocks with the same types, in any thread."""

    def __init__(
        self,
        path: str,
        wanted: Wanted,
        types: Mapping[str, pa.DataType],
        drop: Drop | None,
        header: list[str],
    ) -> None:
        self._path = path
        self._wanted = wanted
        self._types = types
        self._drop = drop
        self._header = header
        self._columns = wanted.select(header) or header[:1]  # Arrow takes an empty list for "all"
        keys = dict.fromkeys(wanted.keys, pa.string())
        self._column_types = {**keys, **wanted.text_types(), **types}
        self.free: deque[bytearray] = deque()
        """Memory to read into again: the system would have to clear the pages of what is new."""

    def keep_types(self, schema: pa.Schema) -> None:
        """Read later blocks as the first one was read."""
        self._column_types = {**{field.name: field.type for field in schema}, **self._column_types}

    def empty(self) -> pa.Table:
        """Return no rows, with the types that are known."""
        types = [(name, self._column_types.get(name, pa.null())) for name in self._columns]
        return pa.schema(types).empty_table()

    def parse(self, block: _Block) -> pa.Table:
        """Return the block's rows. Raises BadInput or Retype."""
        read = pacsv.ReadOptions(use_threads=False, block_size=block.size + 1, column_names=self._header)
        options = self._options(block.place, block.missing, quote_char=False)
        try:
            source = pa.BufferReader(pa.py_buffer(block.data).slice(0, block.size))
            return pacsv.read_csv(source, read, *options)
        except pa.ArrowInvalid as error:
            if str(error).startswith("Empty CSV"):  # nothing but empty lines
                return self.empty()
            raise self._complaint(block.place, error) from None
        finally:
            self.free.append(block.data)

    def stream(self, rest: _Quoted) -> Iterator[pa.Table]:
        """Yield the rows of the rest of a file. Raises BadInput or Retype."""
        read = pacsv.ReadOptions(block_size=_STREAMED_BYTES, column_names=self._header)
        try:
            reader = pacsv.open_csv(rest, read, *self._options(rest.place))
            yield reader.schema.empty_table()
            for batch in reader:
                yield pa.Table.from_batches([batch])
        except pa.ArrowInvalid as error:
            raise self._complaint(rest.place, error) from None

    def _options(
        self, place: _Place, missing: list[str] = _MISSING, quote_char: str | Literal[False] = '"'
    ) -> tuple[pacsv.ParseOptions, pacsv.ConvertOptions]:
        def leave_out(row: Any) -> str:
            if self._drop is None:
                return "error"
            line = None if row.number is None else place.lines_before + row.number
            found = f"{row.actual_columns} values: {row.text[:200]}"
            self._drop(line, f"the line must have {row.expected_columns} values, found {found}")
            return "skip"

        return (
            pacsv.ParseOptions(
                quote_char=quote_char, newlines_in_values=bool(quote_char), invalid_row_handler=leave_out
            ),
            pacsv.ConvertOptions(
                column_types=self._column_types,
                include_columns=self._columns,
                null_values=missing,
                strings_can_be_null=True,
            ),
        )

    def _complaint(self, place: _Place, error: pa.ArrowInvalid) -> Exception:
        match = _CONVERSION.search(str(error))
        if match is None:
            moved = _ROW.sub(lambda row: f"Line {place.lines_before + int(row[1])}", str(error))
            return unreadable(self._path, "csv", pa.ArrowInvalid(moved))
        name, expected, found = self._columns[int(match[1])], match[3], match[4]
        where = f" in line {place.lines_before + int(match[2])}" if match[2] else ""
        complaint = misfit(self._path, name, expected, found + where)
        features = self._wanted.text_types()
        if name in self._wanted.whole_numbers() and name not in self._types:
            return Retype({name: pa.float64()}, complaint)
        is_last_resort = self._types.get(name) == pa.string()
        if is_last_resort or (name in features and self._drop is None):
            return complaint
        return Retype({name: pa.string()}, complaint)


def _header(path: str, stream: Any) -> tuple[list[str], int, bytes]:
    """Return the names of the columns, how many bytes they take, and what was read beyond them."""
    lines = _Lines(stream)
    try:
        header = next(csv.reader(lines), None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, "csv", error) from None
    if header is None:
        raise BadInput(f"input file {path!r} is empty: a CSV file needs at least its header line")
    return header, lines.read - len(lines.rest), lines.rest


class _Lines:
    """The first lines of a stream as text, and the bytes after those that were asked for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # a header is short, and of a damaged file its first rows can be read only before the damage
        self._step = _BLOCK_BYTES // 8
        begun = stream.read(self._step)
        self.read = len(begun)
        self.rest = begun.removeprefix(b"\xef\xbb\xbf")

    def __iter__(self) -> Iterator[str]:
        while self.rest:
            while b"\n" not in self.rest and (more := self._stream.read(self._step)):
                self.read += len(more)
                self.rest += more
            line, newline, self.rest = self.rest.partition(b"\n")
            yield (line + newline).decode("utf-8")


def _blocks(place: _Place, stream: Any, begun: bytes, free: deque[bytearray]) -> Iterator[_Block | _Quoted]:
    """Cut what follows the header at line ends, up to the first quote; what was parsed comes back in `free`."""
    rest = begun
    while True:
        data, end = _read_behind(rest, stream, free)
        if not end:
            return
        if data.find(b'"', 0, end) >= 0:
            yield _Quoted(bytes(data[:end]), stream, place)
            return
        cut = data.rfind(b"\n", 0, end) + 1
        if end == len(rest):
            cut = end  # the last line need not end
        elif not cut and end > _LONGEST_LINE:
            raise BadInput(
                f"input file {place.path!r}: line {place.lines_before + 1} is longer than {_LONGEST_LINE} bytes"
            )
        rest = bytes(data[cut:end])
        if cut:
            yield _Block(data, cut, place)
            place = place.after(data, cut)


def _read_behind(rest: bytes, stream: Any, free: deque[bytearray]) -> tuple[bytearray, int]:
    """Return memory that begins with `rest` and what was read after it, and where that ends."""
    size = len(rest) + _BLOCK_BYTES
    data = free.popleft() if free else bytearray(size + _ROOM_FOR_LINE)
    if len(data) < size:
        data = bytearray(size)
    data[: len(rest)] = rest
    return data, len(rest) + stream.readinto(memoryview(data)[len(rest) : size])
