"""From a request's body to rows: MLflow's scoring protocol, and the two things it lacks.

Accepted: JSON with exactly one of dataframe_split, dataframe_records, instances, inputs; CSV; Parquet. Besides `params`
a JSON body may carry `client_request_id` and `event_time`, one for all rows or a list with one per row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import FeatureSchema
from mlflow_flywheel.pipelines.times import parse_time

JSON, CSV, PARQUET = "application/json", "text/csv", "application/x-parquet"
_PARQUET_NAMES = (PARQUET, "application/parquet", "application/vnd.apache.parquet")
_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class UnsupportedMediaType(BadInput):
    """The body is of a kind that is not taken."""

    http_status = 415


class TooManyRows(BadInput):
    """More rows than one request may have."""

    http_status = 422


@dataclass(frozen=True)
class Rows:
    """What a caller asked: `count` rows as it sent them, and what it said of each."""

    columns: Mapping[str, Sequence[Any]] | pa.Table
    count: int
    client_request_ids: list[str | None] | None
    event_times: list[datetime | None] | None
    params: Mapping[str, Any] | None

    def features(self, schema: FeatureSchema) -> pa.RecordBatch | pa.Table:
        """Return the rows as the model takes them. Raises BadInput that names what does not fit."""
        if isinstance(self.columns, pa.Table):
            return schema.from_table(self.columns)
        return schema.from_columns(self.columns, self.count)


class Parser:
    """Reads bodies for one model. `id_column` and `timestamp_column` are input columns that are no features."""

    def __init__(
        self,
        schema: FeatureSchema,
        max_rows: int,
        id_column: str | None = None,
        timestamp_column: str | None = None,
    ) -> None:
        self._schema = schema
        self._max_rows = max_rows
        self._id_column = id_column
        self._timestamp_column = timestamp_column

    def parse(self, body: bytes, content_type: str | None) -> Rows:
        """Read a body. Raises BadInput, UnsupportedMediaType or TooManyRows."""
        kind = media_type(content_type)
        if kind == JSON:
            return self._parse_json(body)
        table = self._read_csv(body) if kind == CSV else self._read_parquet(body)
        columns = [_column(table, name) for name in (self._id_column, self._timestamp_column)]
        return Rows(table, table.num_rows, _ids(columns[0]), _times(columns[1]), None)

    def _read_csv(self, body: bytes) -> pa.Table:
        types = {feature.name: feature.arrow_type for feature in self._schema.features}
        if self._id_column is not None:
            types.setdefault(self._id_column, pa.string())  # "007" is not 7
        try:
            table = pyarrow.csv.read_csv(
                io.BytesIO(body),
                convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True),
            )
            _ = table.column_names  # a name that is not UTF-8 raises only when it is read
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise BadInput(f"the body is not CSV that fits the model: {error}") from None
        self._check_count(table.num_rows)
        return table

    def _read_parquet(self, body: bytes) -> pa.Table:
        try:
            file = pq.ParquetFile(io.BytesIO(body))
            self._check_count(file.metadata.num_rows)  # before a small body becomes many rows
            wanted = {*self._schema.names, self._id_column, self._timestamp_column}
            table = file.read(columns=[name for name in file.schema_arrow.names if name in wanted])
            table.validate(full=True)  # texts that are not UTF-8 raise only when they are read
            return table
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the body is not Parquet: {error}") from None

    def _parse_json(self, body: bytes) -> Rows:
        data = read_json(body)
        given = [name for name in _FORMATS if isinstance(data, dict) and name in data]
        if len(given) != 1:
            found = f"the keys {list(data)}" if isinstance(data, dict) else f"a JSON {type(data).__name__}"
            raise BadInput(
                f"the body must be a JSON object with exactly one of {', '.join(_FORMATS)}; it has {found}"
            )
        columns, n = _READERS[given[0]](data[given[0]], self._schema)
        return self.rows_of(columns, n, data)

    def rows_of(self, columns: Mapping[str, Sequence[Any]], n: int, said: Mapping[str, Any]) -> Rows:
        """Make rows of columns of `n` values and of what a caller `said` of them: params, client_request_id, event_time.

        Raises BadInput or TooManyRows.
        """
        self._check_count(n)
        params = said.get("params")
        if params is not None and not isinstance(params, dict):
            raise BadInput(f"params must be an object, got {type(params).__name__}")
        ids = _per_row(said.get("client_request_id"), "client_request_id", n)
        times = _per_row(said.get("event_time"), "event_time", n)
        return Rows(
            columns,
            n,
            _ids(ids if ids is not None else columns.get(self._id_column or "")),
            _times(times if times is not None else columns.get(self._timestamp_column or "")),
            params,
        )

    def _check_count(self, n: int) -> None:
        if n == 0:
            raise BadInput("the body has no rows; send at least one")
        if n > self._max_rows:
            raise TooManyRows(
                f"the body has {n} rows, more than the {self._max_rows} of max_rows; send fewer at a time"
            )


def read_json(body: bytes) -> Any:
    """Parse JSON, also with the NaN and Infinity that Python's own writer makes of floats. Raises BadInput."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            data = json.loads(body)
            orjson.dumps(data)  # refuses what could not be logged: lone surrogates, numbers of any length
            return data
        except (ValueError, TypeError, RecursionError):
            raise BadInput(f"the body is not JSON: {error}") from None


def media_type(content_type: str | None) -> str:
    """Return what the body is; a caller that does not say is taken to send JSON."""
    if content_type is None or content_type == JSON:
        return JSON
    kind, *parameters = [part.strip() for part in content_type.split(";")]
    kind = kind.lower()
    for parameter in filter(None, parameters):
        name, _, value = parameter.partition("=")
        if name.strip().lower() != "charset" or value.strip().strip('"').lower() not in ("utf-8", "utf8"):
            raise UnsupportedMediaType(f"content type {content_type!r}: only charset=utf-8 is supported")
    if kind in _PARQUET_NAMES:
        return PARQUET
    if kind not in (JSON, CSV):
        raise UnsupportedMediaType(
            f"content type {content_type!r} is not supported; send {JSON}, {CSV} or {PARQUET}"
        )
    return kind


_Columns = tuple[dict[str, Sequence[Any]], int]


def _from_split(data: Any, schema: FeatureSchema) -> _Columns:
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise BadInput('dataframe_split must be an object like {"columns": [...], "data": [[...], ...]}')
    names = data.get("columns", list(schema.names))
    if not isinstance(names, list) or not set(map(type, names)) <= {str}:
        raise BadInput("dataframe_split: columns must be a list of names")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(
            f"dataframe_split: column {twice!r} is there {names.count(twice)} times; keep one of them"
        )
    return _from_rows(data["data"], names, "dataframe_split")


def _from_records(data: Any, schema: FeatureSchema, what: str = "dataframe_records") -> _Columns:
    """Turn objects into columns; a key that some rows lack is missing there, as in pandas."""
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise BadInput(f"{what} must be a list of objects, one per row")
    names = dict.fromkeys(name for row in data for name in row)
    return {name: [row.get(name) for row in data] for name in names}, len(data)


def _from_instances(data: Any, schema: FeatureSchema, what: str = "instances") -> _Columns:
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return _from_records(data, schema, what)
    if isinstance(data, list) and len(schema.names) == 1 and not any(isinstance(row, list) for row in data):
        return {schema.names[0]: data}, len(data)
    return _from_rows(data, list(schema.names), what)


def _from_inputs(data: Any, schema: FeatureSchema) -> _Columns:
    if not isinstance(data, dict):
        return _from_instances(data, schema, "inputs")
    columns: dict[str, Sequence[Any]] = {
        name: values if isinstance(values, list) else [values] for name, values in data.items()
    }
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise BadInput(f"inputs: the columns have different lengths: {sorted(lengths)}")
    return columns, lengths.pop() if lengths else 0


def _from_rows(rows: Any, names: list[str], what: str) -> _Columns:
    if not isinstance(rows, list):
        raise BadInput(f"{what} must be a list of rows")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            found = f"{len(row)} values" if isinstance(row, list) else f"a JSON {type(row).__name__}"
            raise BadInput(
                f"{what}: row {i} must be a list of {len(names)} values ({', '.join(names)}), got {found}"
            )
    return dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}, len(rows)


_READERS = {
    "dataframe_split": _from_split,
    "dataframe_records": _from_records,
    "instances": _from_instances,
    "inputs": _from_inputs,
}


def _column(table: pa.Table, name: str | None) -> list[Any] | None:
    """Return a column's values, None when it is not there."""
    found = table.column_names.count(name)
    if found > 1:
        raise BadInput(f"column {name!r} is there {found} times; keep one of them")
    return table.column(name).to_pylist() if found else None


def _per_row(value: Any, name: str, n: int) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        return [value] * n
    if len(value) != n:
        raise BadInput(
            f"{name} has {len(value)} entries for {n} rows; give one per row, or a single one for all"
        )
    return value


def _ids(values: Sequence[Any] | None) -> list[str | None] | None:
    if values is None:
        return None
    for i, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
            raise BadInput(f"row {i}: client_request_id must be a string, got {type(value).__name__}")
    return [value if value is None or isinstance(value, str) else str(value) for value in values]


def _times(values: Sequence[Any] | None) -> list[datetime | None] | None:
    if values is None:
        return None
    times: list[datetime | None] = []
    for i, value in enumerate(values):
        try:
            times.append(None if value is None else parse_time(value))
        except ValueError:
            raise BadInput(
                f"row {i}: event_time must be ISO 8601 or milliseconds since 1970, got {str(value)[:60]!r}"
            ) from None
    return times
