"""The columns of the inference table, and rows that are given them."""

from __future__ import annotations

import pyarrow as pa

from .schema import TIMESTAMP, FeatureSchema
from .scoring import FEATURE_PREFIX

_PREDICTION_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("prediction_id", pa.string()),
    ("client_request_id", pa.string()),
    ("request_time", TIMESTAMP),
    ("event_time", TIMESTAMP),
    ("event_date", pa.date32()),
    ("deployment", pa.string()),
    ("mode", pa.string()),
    ("model_name", pa.string()),
    ("model_version", pa.string()),
    ("model_id", pa.string()),
    ("variant", pa.string()),
    ("execution_duration_us", pa.int64()),
    ("status_code", pa.int32()),
    ("sampling_fraction", pa.float64()),
    ("prediction_proba", pa.list_(pa.float64())),
    ("adjustment", pa.string()),
]
_FEEDBACK_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("prediction_id", pa.string()),
    ("client_request_id", pa.string()),
    ("label_time", TIMESTAMP),
    ("received_time", TIMESTAMP),
    ("received_date", pa.date32()),
    ("source", pa.string()),
]


def predictions_schema(schema: FeatureSchema, kind: str) -> pa.Schema:
    """Return the Arrow schema of `predictions` for a model with these features and this kind of prediction."""
    features = [(FEATURE_PREFIX + feature.name, feature.table_type) for feature in schema.features]
    return pa.schema([*_PREDICTION_COLUMNS, ("prediction", _value_type(kind)), *features])


def feedback_schema(kind: str) -> pa.Schema:
    """Return the Arrow schema of `feedback`."""
    return pa.schema([*_FEEDBACK_COLUMNS, ("label", _value_type(kind))])


def rows_for(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give rows of predictions the columns and types of a table's schema; text may be a dictionary."""
    return _conform(rows, schema, "event_time", "event_date")


def label_rows_for(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give rows of feedback the columns and types of a table's schema."""
    return _conform(rows, schema, "received_time", "received_date")


def _conform(rows: pa.Table, schema: pa.Schema, time_column: str, date_column: str) -> pa.Table:
    """Give rows the table's columns and types; the partition column is derived from its time."""
    rows = rows.set_column(
        rows.column_names.index(date_column) if date_column in rows.column_names else rows.num_columns,
        date_column,
        # without their zone, which is UTC: Arrow would look it up for each of the times
        rows.column(time_column).cast(pa.timestamp("us")).cast(pa.date32()),
    )
    arrays = {
        column.name: _cast(rows.column(column.name), column.type)
        if column.name in rows.column_names
        else pa.nulls(rows.num_rows, column.type)
        for column in schema
    }
    unknown = [name for name in rows.column_names if name not in arrays]
    return pa.table({**arrays, **{name: rows.column(name) for name in unknown}})


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    is_its_dictionary = pa.types.is_dictionary(column.type) and column.type.value_type == kind
    return column if is_its_dictionary else column.cast(kind)


def same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(found) or pa.types.is_large_list(found))
    return bool(found == wanted)


def _value_type(kind: str) -> pa.DataType:
    return pa.string() if kind == "string" else pa.float64()
