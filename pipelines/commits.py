"""Rows of one commit to a table, before there is a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa

from .errors import Unavailable
from .parquet_parts import Part, PartWriter


class Commit(Protocol):
    """Rows that readers see all at once, when they are committed."""

    def write(self, rows: pa.Table) -> None:
        """Add rows that have exactly the table's columns; text may be a dictionary."""

    def commit(self) -> bool:
        """Show the rows; return False, and show none, when this transaction was committed before."""

    def drop(self) -> None:
        """Remove what was written and not committed."""


class GrowingCommit:
    """Writes Parquet files as rows come: they cost disk and little memory until the commit."""

    def __init__(self, parts: PartWriter, add: Callable[[list[Part]], bool]) -> None:
        self._parts = parts
        self._add = add
        self._may_be_seen = False

    def write(self, rows: pa.Table) -> None:
        with _writing():
            self._parts.write(rows)

    def commit(self) -> bool:
        with _writing():
            parts = self._parts.finish()
            self._may_be_seen = True
            return self._add(parts)

    def drop(self) -> None:
        if not self._may_be_seen:  # a commit that raised may have succeeded before
            self._parts.drop()


class HeldCommit:
    """Holds rows for delta-rs to write, where a table of somebody else's asks for more than plain files."""

    def __init__(self, append: Callable[[pa.Table], bool]) -> None:
        self._append = append
        self._rows: list[pa.Table] = []

    def write(self, rows: pa.Table) -> None:
        self._rows.append(rows)

    def commit(self) -> bool:
        done = self._append(plain_text(pa.concat_tables(self._rows)))
        self.drop()
        return done

    def drop(self) -> None:
        self._rows.clear()


def plain_text(rows: pa.Table) -> pa.Table:
    """Spell dictionaries out: delta-rs would make them the table's type."""
    for i, column in enumerate(rows.schema):
        if pa.types.is_dictionary(column.type):
            rows = rows.set_column(i, column.name, rows.column(i).cast(column.type.value_type))
    return rows


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"a table's file cannot be written: {error}") from error
