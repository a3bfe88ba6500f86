"""JSON Lines in Arrow tables, a block of whole lines at a time.

Features are read with the signature's types. A file of more than one block whose other columns are kept is read
twice, as only the whole file tells which columns there are and of which type.
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
    parser = _Parser(path, wanted, {**wanted.text_types(), **types}, retyped=bool(types))
    blocks = _blocks(path)
    first, second = next(blocks, None), next(blocks, None)
    if first is None:
        yield pa.schema(list(parser.types.items())).empty_table()
        return
    if second is not None and parser.infer:
        parser.learn(_blocks(path))
    table = _without_absent(parser.parse(first), first)
    wanted.check_names(path, table.column_names)
    yield table
    for block in (second, *blocks) if second is not None else ():
        yield parser.parse(block).select(table.column_names)


class _Parser:
    def __init__(self, path: str, wanted: Wanted, types: dict[str, pa.DataType], retyped: bool) -> None:
        self.path = path
        self.wanted = wanted
        self.types = types
        self.retyped = retyped
        self.infer = wanted.everything or not set(wanted.named) <= set(types)

    def learn(self, blocks: Iterator[_Block]) -> None:
        """Take the names and types of all columns from the whole file."""
        seen = pa.schema(list(self.types.items()))
        for block in blocks:
            found = self.parse(block).schema
            try:
                seen = pa.unify_schemas([seen, found], promote_options="permissive")
            except pa.ArrowException as error:
                raise unreadable(self.path, "jsonl", error) from None
        self.types = {field.name: field.type for field in seen}
        self.infer = False

    def parse(self, block: _Block) -> pa.Table:
        try:
            table = pajson.read_json(
                io.BytesIO(block.data),
                read_options=pajson.ReadOptions(block_size=len(block.data) + 1),
                parse_options=pajson.ParseOptions(
                    explicit_schema=pa.schema(list(self.types.items())),
                    unexpected_field_behavior="infer" if self.infer else "ignore",
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._complaint(block, error) from None
        return table.select(self.wanted.select(table.column_names))

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
    with pa.input_stream(path) as stream:
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
    record = orjson.loads(block.data.lstrip().partition(b"\n")[0])
    return table.select(
        [name for name in table.column_names if name in record or table[name].null_count < table.num_rows]
    )
