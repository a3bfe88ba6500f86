"""Which rows of a chunk do not fit the model's features, and why: looked at only when something does not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema, short

from .columns import is_text, parsed_or_null, with_parsed_times
from .wanted import Wanted

_NUMBER = r"^-?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)$"
_Mask = npt.NDArray[np.bool_]
_LIMITS = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}


@dataclass(frozen=True)
class Misfit:
    """One row that cannot be scored; `at` is its place in the chunk."""

    at: int
    column: str | None
    expected: str
    found: str

    @property
    def reason(self) -> str:
        """Return a sentence about it."""
        subject = "the row" if self.column is None else f"column {self.column!r}"
        return f"{subject} must be {self.expected}, found {self.found}"


def features_of(chunk: pa.Table, schema: FeatureSchema) -> pa.Table:
    """Return the features of a chunk; raises BadInput when any row does not fit."""
    return schema.from_table(with_parsed_times(chunk, schema))


def misfits(chunk: pa.Table, wanted: Wanted, read_as_text: Collection[str]) -> list[Misfit]:
    """Return the first reason of each row that does not fit, by place.

    Empty where not the rows but the columns are wrong: missing, twice, or of a type of which no value could fit.
    `read_as_text` names the features whose text a reader could not take for their type; others' is never parsed.
    """
    found: dict[int, Misfit] = {}
    times = wanted.timestamp_column
    looked_at = list(wanted.features.features)
    if times is not None and times not in wanted.features.names:
        looked_at.append(Feature(times, "datetime", required=False))
    for feature in looked_at:
        if feature.name not in chunk.column_names:
            continue
        column = chunk[feature.name]
        wrong = _wrong(feature, column, feature.name in read_as_text)
        for at in np.flatnonzero(wrong) if wrong is not None else ():
            value = column[int(at)].as_py()
            found.setdefault(int(at), Misfit(int(at), feature.name, _expected(feature), short(value)))
    return [found[at] for at in sorted(found)]


def with_numbers(chunk: pa.Table, schema: FeatureSchema, read_as_text: Collection[str]) -> pa.Table:
    """Turn the features that were read as text for a few odd rows into what they should be; odd values into nulls."""
    for feature in schema.features:
        at = chunk.schema.get_field_index(feature.name)
        parses = feature.is_numeric or feature.type == "boolean"
        if parses and at >= 0 and feature.name in read_as_text and is_text(chunk.schema.field(at).type):
            chunk = chunk.set_column(at, feature.name, _parsed(feature, chunk.column(at)))
    return chunk


def _expected(feature: Feature) -> str:
    if feature.type == "datetime":
        return "a datetime in ISO 8601"
    return f"{feature.type} (32 bits)" if feature.type == "integer" else feature.type


def _wrong(feature: Feature, column: pa.ChunkedArray, was_text: bool) -> _Mask | None:
    """Return a mask of the rows that do not fit, or None when that is not a matter of rows."""
    if is_text(column.type) and feature.type == "datetime":
        return _lost(column, parsed_or_null(column))
    if is_text(column.type) and was_text:
        parsed = _parsed(feature, column)
        return np.logical_or(_lost(column, parsed), _unfit(feature, parsed))
    if pa.types.is_string(feature.arrow_type) or is_text(column.type):
        return None
    return _unfit(feature, column)


def _unfit(feature: Feature, column: pa.ChunkedArray) -> _Mask:
    wrong = np.zeros(len(column), bool)
    if feature.type in ("integer", "long", "boolean") and feature.required:
        wrong |= _mask(pc.is_null(column))
    whole = pa.types.is_signed_integer(column.type)
    if feature.type not in _LIMITS or pa.types.is_null(column.type) or (feature.type == "long" and whole):
        return wrong
    low, high = _LIMITS[feature.type]
    numbers = column.cast(pa.float64(), safe=False)
    # 2**63 itself is the nearest double to the largest long, and does not fit
    beyond = pc.or_(pc.less(numbers, float(low)), pc.greater_equal(numbers, float(high) + 1.0))
    wrong |= _mask(beyond)
    if pa.types.is_floating(column.type):
        wrong |= _mask(pc.not_equal(numbers, pc.trunc(numbers)))
    return wrong


def _parsed(feature: Feature, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Parse text value by value, as Arrow does; what is no number, or no truth, becomes null."""
    text = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
    if feature.type == "boolean":
        known = pc.is_in(text, pa.array(["true", "false", "1", "0"]))
        return pc.if_else(known, pc.is_in(text, pa.array(["true", "1"])), pa.scalar(None, pa.bool_()))
    numbers = pc.match_substring_regex(text, _NUMBER)
    return pc.if_else(numbers, text, pa.scalar(None, pa.string())).cast(pa.float64())


def _lost(before: pa.ChunkedArray, after: pa.ChunkedArray) -> _Mask:
    return _mask(pc.and_(pc.is_valid(before), pc.is_null(after)))


def _mask(column: pa.ChunkedArray) -> _Mask:
    return np.asarray(pc.fill_null(column, False).to_numpy(), np.bool_)


def first_misfit(odd: Sequence[Misfit], number_of: Callable[[int], int]) -> BadInput | None:
    """Return the error that names the first row that does not fit, or None when no single row is to blame.

    `number_of` tells which row of the file is at a place of the chunk.
    """
    return BadInput(f"row {number_of(odd[0].at)}: {odd[0].reason}") if odd else None
