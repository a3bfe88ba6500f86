"""The columns that a caller names: their own key of a row, and when the thing happened."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import TIMESTAMP, FeatureSchema

_FORMS = "give datetimes, ISO 8601 text or milliseconds since 1970"


def caller_ids(chunk: pa.Table, column: str | None) -> pa.Array | None:
    """Return the callers' ids as text, or None when no column is named."""
    if column is None:
        return None
    try:
        return one_array(chunk[column].cast(pa.string()))
    except pa.ArrowException:
        raise BadInput(
            f"column {column!r} of type {chunk[column].type} cannot be an id; name one of text or numbers"
        ) from None


def event_times(chunk: pa.Table, column: str | None) -> pa.Array | None:
    """Return the named column as UTC times, or None when no column is named.

    Numbers are milliseconds since 1970, as in web and stream mode.
    """
    if column is None:
        return None
    found = chunk[column].type
    if is_text(found):
        times = parsed_times(chunk[column], column)
    elif pa.types.is_integer(found) or pa.types.is_floating(found):
        times = _from_milliseconds(chunk[column], column)
    elif pa.types.is_timestamp(found) or pa.types.is_date(found) or pa.types.is_null(found):
        times = chunk[column].cast(TIMESTAMP)
    else:
        raise BadInput(f"column {column!r} must hold times, found {found}; {_FORMS}")
    return one_array(times)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; a copy only where it is in pieces."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def with_parsed_times(chunk: pa.Table, schema: FeatureSchema) -> pa.Table:
    """Parse the datetime features that came as text."""
    for feature in schema.features:
        at = chunk.schema.get_field_index(feature.name)
        if feature.type == "datetime" and at >= 0 and is_text(chunk.schema.field(at).type):
            chunk = chunk.set_column(at, feature.name, parsed_times(chunk.column(at), feature.name))
    return chunk


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type is one of Arrow's kinds of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def parsed_times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Parse ISO 8601; times without a zone are UTC. One form for the whole column is fast, a mixture is not."""
    column = column.cast(pa.string())
    try:
        return column.cast(TIMESTAMP)
    except pa.ArrowInvalid:
        pass
    try:
        return pc.assume_timezone(column.cast(pa.timestamp("us")), "UTC")
    except pa.ArrowInvalid:
        pass
    import pandas as pd

    try:
        parsed = pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601")
    except ValueError as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise BadInput(f"column {name!r} must hold times ({reason}); {_FORMS}") from None
    return pa.chunked_array([pa.Array.from_pandas(parsed, type=TIMESTAMP)])


def parsed_or_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Parse ISO 8601 value by value; what is no time becomes null."""
    import pandas as pd

    parsed = pd.to_datetime(column.cast(pa.string()).to_pandas(), utc=True, format="ISO8601", errors="coerce")
    return pa.chunked_array([pa.Array.from_pandas(parsed, type=TIMESTAMP)])


def _from_milliseconds(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        return (
            pc.multiply_checked(column.cast(pa.float64()), 1000.0)
            .cast(pa.int64(), safe=False)
            .cast(TIMESTAMP)
        )
    except pa.ArrowInvalid as error:
        raise BadInput(f"column {name!r} must hold times ({error}); {_FORMS}") from None
