"""Spool lines as an Arrow table in the types of the inference table.

A line is `{"k": {column: one value for all its rows}, "c": {column: [value per row]}}`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from .schema import TIMESTAMP

_log = logging.getLogger(__name__)

_REFUSED = "refused.jsonl"
Line = tuple[Any, "range | list[int]"]


def line_length(line: Any) -> int:
    """Return how many rows a line has."""
    return len(next(iter(line["c"].values()), ()))


def lines_to_table(lines: list[Line], schema: pa.Schema, folder: Path) -> pa.Table | None:
    """Return the rows of spool lines in the types of the Delta table, or None without rows.

    A line that does not fit those types would stop every later commit: it is kept aside and said, the rest goes on.
    """
    columns = _Columns()
    for line, keep in lines:
        columns.add(line, keep)
    try:
        return columns.to_table(schema)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        if len(lines) > 1:
            alone = [lines_to_table([each], schema, folder) for each in lines]
            fitting = [rows for rows in alone if rows is not None]
            return pa.concat_tables(fitting, promote_options="default") if fitting else None
        aside = folder / _REFUSED
        with aside.open("ab") as file:
            file.write(orjson.dumps(lines[0][0]) + b"\n")
        _log.error("%d rows do not fit the table (%s); they are kept at %s", columns.rows, error, aside)
        return None


def rows_set_aside(folder: Path) -> int:
    """Return how many rows `lines_to_table` has kept aside in a folder."""
    try:
        lines = (folder / _REFUSED).read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    return sum(line_length(orjson.loads(line)) for line in lines)


class _Columns:
    """Rows of many spool lines, column by column."""

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, list[Any]] = {}

    def add(self, line: Any, keep: range | list[int]) -> None:
        n = len(keep)
        if n == 0:
            return
        whole = n == line_length(line)
        for name, value in line["k"].items():
            self._column(name).extend([value] * n)
        for name, values in line["c"].items():
            self._column(name).extend(values if whole else [values[i] for i in keep])
        self.rows += n
        for column in self._columns.values():
            column.extend([None] * (self.rows - len(column)))

    def _column(self, name: str) -> list[Any]:
        return self._columns.setdefault(name, [None] * self.rows)

    def to_table(self, schema: pa.Schema) -> pa.Table | None:
        """Return an Arrow table in the types of the Delta table, or None without rows."""
        if not self.rows:
            return None
        if "event_time" in schema.names:
            times = self._columns.get("event_time") or [None] * self.rows
            pairs = zip(times, self._columns["request_time"], strict=True)
            self._columns["event_time"] = [asked if time is None else time for time, asked in pairs]
        return pa.table(
            {name: _array(values, schema.field(name).type) for name, values in self._columns.items()}
        )


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(TIMESTAMP)
    try:
        return pa.array(values, kind)
    except pa.ArrowInvalid:  # integers that no double holds exactly: they become the nearest one
        if not pa.types.is_floating(kind):
            raise
        return pa.array([None if value is None else float(value) for value in values], kind)
