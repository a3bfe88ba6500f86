"""What a job needs of every input file, and how a file that does not fit is reported."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from mlflow_flywheel.pipelines.errors import BadInput, nearest
from mlflow_flywheel.pipelines.schema import FeatureSchema

if TYPE_CHECKING:
    from .selection import Selection

UNREADABLE = (pa.ArrowException, OSError, EOFError)
Drop = Callable[[int | None, str], None]
"""Told of each line that a reader leaves out, with its number from 1 and the reason."""


@dataclass(frozen=True)
class Wanted:
    """The columns that a job needs of every input file."""

    features: FeatureSchema
    passthrough: tuple[str, ...] = ("*",)
    id_column: str | None = None
    timestamp_column: str | None = None
    selection: Selection | None = None

    def without(self, names: Collection[str]) -> Wanted:
        """Return what is wanted of a file where these columns come from elsewhere."""
        if not names:
            return self
        kept = [feature for feature in self.features.features if feature.name not in names]
        return Wanted(
            FeatureSchema(kept),
            tuple(name for name in self.passthrough if name not in names),
            None if self.id_column in names else self.id_column,
            None if self.timestamp_column in names else self.timestamp_column,
            None if self.selection is None or self.selection.column in names else self.selection,
        )

    @property
    def everything(self) -> bool:
        return "*" in self.passthrough

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the columns whose text is kept as it is written: a caller's id, a time to be parsed."""
        return tuple(name for name in (self.id_column, self.timestamp_column) if name is not None)

    @property
    def named(self) -> tuple[str, ...]:
        """Return the columns that the job names beside the features; each must exist."""
        chosen_by = () if self.selection is None else (self.selection.column,)
        return tuple(
            dict.fromkeys(name for name in (*self.passthrough, *self.keys, *chosen_by) if name != "*")
        )

    def select(self, columns: Iterable[str]) -> list[str]:
        """Return which of a file's columns to read."""
        names = {*self.features.names, *self.named}
        return [name for name in columns if self.everything or name in names]

    def kept(self, columns: Sequence[str]) -> list[str]:
        """Return the columns that the output keeps, in the file's order."""
        return [name for name in columns if self.everything or name in self.passthrough]

    def text_types(self) -> dict[str, pa.DataType]:
        """Return how features are read from text; times are parsed later, as they come in more than one form."""
        return {f.name: pa.string() if f.type == "datetime" else f.arrow_type for f in self.features.features}

    def whole_numbers(self) -> dict[str, pa.DataType]:
        """Return doubles for the integer features: "3.0" is a whole number, as the schema's cast finds out."""
        return {f.name: pa.float64() for f in self.features.features if pa.types.is_integer(f.arrow_type)}

    def check_names(self, path: str, columns: Sequence[str]) -> None:
        """Raise BadInput when a column occurs twice or a named one is not there."""
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise BadInput(f"input file {path!r} has the column {twice[0]!r} twice; rename one")
        for name in self.named:
            if name not in columns:
                raise BadInput(
                    f"input file {path!r} has no column {name!r}{nearest(name, columns)}; it has: {', '.join(columns)}"
                )


class Retype(Exception):
    """A text file must be read again from its start, with these types for these columns."""

    def __init__(self, types: Mapping[str, pa.DataType], because: BadInput) -> None:
        super().__init__(because.message)
        self.types = dict(types)
        self.because = because


def misfit(path: str, column: str, expected: str, found: str) -> BadInput:
    """Return the error for a value or a column of another type."""
    return BadInput(f"input file {path!r}: column {column!r} must be {expected}, found {found}")


def unreadable(
    path: str, form: Literal["parquet", "csv", "jsonl", "delta"], error: BaseException
) -> BadInput:
    """Return the error for a file that is not what its name says, or is damaged."""
    kind = {
        "parquet": "Parquet",
        "csv": "CSV",
        "jsonl": "JSON Lines (one object per line)",
        "delta": "Delta",
    }[form]
    return BadInput(f"input file {path!r} cannot be read as {kind}: {str(error).splitlines()[0]}")
