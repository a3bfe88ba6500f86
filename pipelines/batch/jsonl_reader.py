"""JSON Lines in Arrow tables, a block of whole lines at a time.

Features are read with the signature's types; where lines may be left out, those that do not fit them are. A file of more
than one block whose other columns are kept is read twice, as only the whole file tells which columns there are and of
which type.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson
import pyarrow as pa
import pyarrow.json as pajson

from mlflow_flywheel.pipelines.errors import BadInput

from .locations import Location
from .wanted import Drop, Retype, Wanted, misfit, unreadable

_BLOCK_BYTES = 8 * 1024 * 1024
_LONGEST_LINE = 8 * _BLOCK_BYTES
_CHANGED = re.compile(r"Column\(/([^)]*)\) changed from (\S+) to (\S+)")
_ROW = re.compile(r"in row (\d+)")


@dataclass(frozen=True)
class _Block:
    data: bytes
    first_line: int


def read_jsonl(
    path: str, wanted: Wanted, types: Mapping[str, pa.DataType], drop: Drop | None = None
) -> Iterator[pa.Table]:
    """Yield an empty table with the schema, then the rows; a key that a line lacks is null in that row.

    A feature of which the first line has no key and the first block no value is left out, for the schema to miss.
    """
    parser = _Parser(path, wanted, {**wanted.text_types(), **types}, bool(types), drop)
    blocks = _blocks(path)
    first, second = next(blocks, None), next(blocks, None)
    if first is None:
        yield parser.empty()
        return
    if second is not None and parser.infer:
        parser.learn(_blocks(path))
    table = _without_absent(parser.parse(first), first)
    wanted.check_names(path, table.column_names)
    yield table
    for block in (second, *blocks) if second is not None else ():
        yield parser.parse(block).select(table.column_names)


class _Parser:
    def __init__(
        self, path: str, wanted: Wanted, types: dict[str, pa.DataType], retyped: bool, drop: Drop | None
    ) -> None:
        self.path = path
        self.wanted = wanted
        self.types = types
        self.retyped = retyped
        self.drop = drop
        self.infer = wanted.everything or not set(wanted.named) <= set(types)

    def learn(self, blocks: Iterator[_Block]) -> None:
        """Take the names and types of all columns from the whole file."""
        seen = pa.schema(list(self.types.items()))
        for block in blocks:
            found = self.parse(block, silently=True).schema
            try:
                seen = pa.unify_schemas([seen, found], promote_options="permissive")
            except pa.ArrowException as error:
                raise unreadable(self.path, "jsonl", error) from None
        self.types = {field.name: field.type for field in seen}
        self.infer = False

    def empty(self) -> pa.Table:
        """Return no rows, with the types that are known."""
        return pa.schema(list(self.types.items())).empty_table()

    def parse(self, block: _Block, silently: bool = False) -> pa.Table:
        """Return the block's rows; of lines that are left out `drop` is told unless `silently`."""
        try:
            return self._read(block.data)
        except pa.ArrowInvalid as error:
            complaint = self._complaint(block, error)
            if self.drop is None or isinstance(complaint, Retype):
                raise complaint from None
        good = self._good(block.data.splitlines(keepends=True), block.first_line, silently)
        try:
            return self._read(b"".join(good)) if good else self.empty()
        except pa.ArrowInvalid as error:  # each line is fine, but not all together
            raise self._complaint(block, error) from None

    def _read(self, data: bytes) -> pa.Table:
        table = pajson.read_json(
            io.BytesIO(data),
            read_options=pajson.ReadOptions(block_size=len(data) + 1),
            parse_options=pajson.ParseOptions(
                explicit_schema=pa.schema(list(self.types.items())),
                unexpected_field_behavior="infer" if self.infer else "ignore",
            ),
        )
        return table.select(self.wanted.select(table.column_names))

    def _good(self, lines: list[bytes], first_line: int, silently: bool) -> list[bytes]:
        """Return the lines that can be read, halving until the others stand alone."""
        if not b"".join(lines).strip():
            return []
        try:
            self._read(b"".join(lines))
            return lines
        except pa.ArrowInvalid as error:
            if len(lines) > 1:
                half = len(lines) // 2
                low = self._good(lines[:half], first_line, silently)
                return low + self._good(lines[half:], first_line + half, silently)
            if not silently and self.drop is not None:
                self.drop(first_line, str(self._complaint(_Block(lines[0], first_line), error)))
            return []

    def _complaint(self, block: _Block, error: pa.ArrowInvalid) -> Exception:
        text = _ROW.sub(lambda row: f"in line {block.first_line + int(row[1])}", str(error))
        changed = _CHANGED.search(text)
        if changed is not None:
            line = text[changed.end() :]
            return misfit(self.path, changed[1], changed[2], changed[3] + line)
        complaint = unreadable(self.path, "jsonl", pa.ArrowInvalid(text))
        if self.wanted.whole_numbers() and not self.retyped and "Failed to convert" in text:
            return Retype(self.wanted.whole_numbers(), complaint)
        return complaint


def _blocks(path: str) -> Iterator[_Block]:
    """Cut the file at line ends into blocks of about the same size."""
    rest, line = b"", 1
    with Location.of(path).read() as stream:
        while data := stream.read(_BLOCK_BYTES):
            whole, newline, tail = data.rpartition(b"\n")
            if not newline:
                rest += data
                if len(rest) > _LONGEST_LINE:
                    raise BadInput(f"input file {path!r}: line {line} is longer than {_LONGEST_LINE} bytes")
                continue
            block, rest = rest + whole + newline, tail
            if block.strip():
                yield _Block(block, line)
            line += block.count(b"\n")
    if rest.strip():
        yield _Block(rest, line)


def _without_absent(table: pa.Table, block: _Block) -> pa.Table:
    try:
        record = orjson.loads(block.data.lstrip().partition(b"\n")[0])
    except orjson.JSONDecodeError:  # a line that was left out
        record = ()
    return table.select(
        [name for name in table.column_names if name in record or table[name].null_count < table.num_rows]
    )
