"""The rows of a label file, each of which is a label or has a reason why it is none.

A whole table is checked column by column. Where that fails it is cut small, and the parts that hold a row that does not
fit are read row by row as labels from any other door are: the same rules, the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.feedback import check_label
from mlflow_flywheel.pipelines.schema import TIMESTAMP

from .reading import Piece

_FEW = 1024
_NAIVE = pa.timestamp("us")


@dataclass(frozen=True)
class Misfit:
    """A row that is no label: where it stands, why, and the row itself where it could be read."""

    place: int
    reason: str
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Checked:
    """The labels of a piece, in the columns of the feedback table, and the rows that are none."""

    rows: pa.Table
    misfits: Sequence[Misfit] = field(default_factory=list)


class LabelCheck:
    """Checks the pieces of one file. `kind` is the type of the model's predictions: "double" or "string"."""

    def __init__(self, kind: str, source: str) -> None:
        self._kind = kind
        self._source = source
        self._value = pa.string() if kind == "string" else pa.float64()
        self._schema = pa.schema(
            [
                ("prediction_id", pa.string()),
                ("client_request_id", pa.string()),
                ("label", self._value),
                ("label_time", TIMESTAMP),
                ("received_time", TIMESTAMP),
                ("source", pa.string()),
            ]
        )

    def check(self, piece: Piece, received: int) -> Checked:
        """Separate labels from rows that are none.

        `received` is when the first row came, in microseconds since 1970 UTC. Each row counts as received one
        microsecond after the one above it, so that of two labels of one file the lower one is the later one.
        """
        misfits = [Misfit(place, reason) for place, reason in piece.refused]
        if isinstance(piece.rows, pa.Table):
            parts = list(self._table(piece, piece.rows, 0, received, misfits))
        else:
            parts = [self._one_by_one(piece, piece.rows, 0, received, misfits)]
        misfits.sort(key=lambda misfit: misfit.place)
        return Checked(pa.concat_tables(parts), misfits)

    def _table(
        self, piece: Piece, rows: pa.Table, first: int, received: int, misfits: list[Misfit]
    ) -> Iterator[pa.Table]:
        try:
            yield self._columns(rows, received + first)
            return
        except (_Odd, pa.ArrowException):
            pass
        if rows.num_rows <= _FEW:
            yield self._one_by_one(piece, rows.to_pylist(), first, received, misfits)
            return
        for start in range(0, rows.num_rows, _FEW):
            yield from self._table(piece, rows.slice(start, _FEW), first + start, received, misfits)

    def _one_by_one(
        self,
        piece: Piece,
        records: Sequence[Mapping[str, Any]],
        first: int,
        received: int,
        misfits: list[Misfit],
    ) -> pa.Table:
        labels = []
        for index, record in enumerate(records, first):
            given = {name: value for name, value in record.items() if value is not None}
            try:
                label = check_label(given, self._kind, received + index)
            except BadInput as error:
                misfits.append(Misfit(piece.place(index), error.message, given))
                continue
            label["source"] = label["source"] or self._source
            labels.append({**label, "received_time": received + index})
        return pa.table(
            {
                column.name: pa.array([label[column.name] for label in labels], _storage(column.type)).cast(
                    column.type
                )
                for column in self._schema
            }
        )

    def _columns(self, rows: pa.Table, received: int) -> pa.Table:
        """Return the labels of a table in which every row is one; raises _Odd or ArrowException otherwise."""
        n = rows.num_rows
        arrived = pa.array(np.arange(received, received + n, dtype=np.int64)).cast(TIMESTAMP)
        by_id, by_client = (_id(rows, name) for name in ("prediction_id", "client_request_id"))
        _sure(pc.or_(pc.is_valid(by_id), pc.is_valid(by_client)))
        by_client = pc.if_else(pc.is_valid(by_id), pa.scalar(None, pa.string()), by_client)
        label = _numbers(rows["label"]) if self._kind == "double" else _texts(rows["label"])
        columns = [
            by_id,
            by_client,
            label,
            pc.coalesce(_times(rows, n), arrived),
            arrived,
            pc.coalesce(_text_column(rows, "source"), pa.scalar(self._source)),
        ]
        return pa.table(columns, schema=self._schema)


class _Odd(Exception):
    """Some row needs a closer look."""


def _sure(mask: Any) -> None:
    if pc.all(mask).as_py() is False:
        raise _Odd


def _storage(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_timestamp(kind) else kind


def _text_column(rows: pa.Table, name: str) -> Any:
    """Return a column of text; one that is not there, or has nothing in it, is null."""
    if name not in rows.column_names or pa.types.is_null(rows[name].type):
        return pa.nulls(rows.num_rows, pa.string())
    kind = rows[name].type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _Odd
    return rows[name].cast(pa.string())


def _id(rows: pa.Table, name: str) -> Any:
    column = _text_column(rows, name)
    _sure(pc.not_equal(column, ""))
    return column


def _numbers(column: Any) -> Any:
    if pa.types.is_string(column.type):
        try:
            numbers = column.cast(pa.float64())
        except pa.ArrowInvalid:
            words = pc.ascii_lower(pc.utf8_trim_whitespace(column))
            digits = pc.if_else(
                pc.equal(words, "true"), "1", pc.if_else(pc.equal(words, "false"), "0", words)
            )
            numbers = digits.cast(pa.float64())
    else:
        numbers = column.cast(pa.float64(), safe=False)
    if numbers.null_count:
        raise _Odd
    _sure(pc.is_finite(numbers))
    return numbers


def _texts(column: Any) -> Any:
    if column.null_count:
        raise _Odd
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    if pa.types.is_floating(column.type):
        column = column.cast(pa.int64())  # raises for a fraction
    if not pa.types.is_integer(column.type):
        raise _Odd
    return column.cast(pa.string())


def _times(rows: pa.Table, n: int) -> Any:
    """Return times in UTC, null where none is given; without a zone they are UTC, as numbers milliseconds since 1970."""
    if "label_time" not in rows.column_names or pa.types.is_null(rows["label_time"].type):
        return pa.nulls(n, TIMESTAMP)
    column = rows["label_time"]
    if pa.types.is_string(column.type):
        try:
            return column.cast(TIMESTAMP)
        except pa.ArrowInvalid:
            return column.cast(_NAIVE).cast(TIMESTAMP)
    if pa.types.is_integer(column.type):
        return pc.multiply_checked(column.cast(pa.int64()), 1000).cast(TIMESTAMP)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        zoned = pa.types.is_timestamp(column.type) and column.type.tz is not None
        return column.cast(TIMESTAMP if zoned else _NAIVE, safe=False).cast(TIMESTAMP)
    raise _Odd
