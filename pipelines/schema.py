"""What a model takes: named, typed features, and the checks that make any input fit them or say why it does not.

Everything that is scored is first an Arrow batch with exactly these columns. Numbers stay numbers: a string is never
parsed into one silently, a fraction never becomes an integer, and a missing value is allowed only where the type has
one (double, float, string, datetime), as MLflow's own signature enforcement does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput, nearest

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

TIMESTAMP = pa.timestamp("us", tz="UTC")
_SCORING_TYPES = {
    "double": pa.float64(),
    "float": pa.float64(),
    "integer": pa.int64(),
    "long": pa.int64(),
    "string": pa.string(),
    "boolean": pa.bool_(),
    "datetime": TIMESTAMP,
}
_NUMPY_TYPES = {"double": np.float64, "float": np.float32, "integer": np.int32, "long": np.int64}
_INT32 = np.iinfo(np.int32)
_CANNOT_BE_MISSING = frozenset({"integer", "long", "boolean"})
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "double": (int, float, np.integer, np.floating),
    "float": (int, float, np.integer, np.floating),
    "integer": (int, float, np.integer, np.floating),
    "long": (int, float, np.integer, np.floating),
    "string": (str,),
    "boolean": (bool, np.bool_),
    "datetime": (str, datetime),
}
# what needs no further look, as JSON has it: Arrow takes each of these as it is
_SURE_TYPES = {
    "double": frozenset({float, type(None)}),
    "float": frozenset({float, type(None)}),
    "boolean": frozenset({bool}),
}
_NONE: frozenset[type] = frozenset()


@dataclass(frozen=True)
class Feature:
    """One named input of a model; `type` is MLflow's name for it."""

    name: str
    type: str
    required: bool = True

    @property
    def arrow_type(self) -> pa.DataType:
        """Return the Arrow type in which it is scored."""
        return _SCORING_TYPES[self.type]

    @property
    def table_type(self) -> pa.DataType:
        """Return the Arrow type in which it is logged: every number is a double, so that a later float fits."""
        return pa.float64() if pa.types.is_integer(self.arrow_type) else self.arrow_type

    @property
    def is_numeric(self) -> bool:
        return self.type in _NUMPY_TYPES


class FeatureSchema:
    """The features of one model, in the order in which the model takes them."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.names = tuple(feature.name for feature in self.features)
        self.name_set = frozenset(self.names)
        self.arrow = pa.schema([(feature.name, feature.arrow_type) for feature in self.features])

    @classmethod
    def from_signature(cls, signature: ModelSignature | None, model: str = "the model") -> FeatureSchema:
        """Build from an MLflow signature; raises as `from_inputs` does."""
        inputs = None if signature is None else signature.inputs
        return cls.from_inputs(None if inputs is None else inputs.to_dict(), model)

    @classmethod
    def from_inputs(
        cls, inputs: Sequence[Mapping[str, Any]] | None, model: str = "the model"
    ) -> FeatureSchema:
        """Build from the inputs of a signature as MLflow writes them: type, name and whether it is required.

        Raises BadInput when there are none, or when they are no named, scalar columns.
        """
        remedy = "log it with signature=infer_signature(X, model.predict(X)) where X is a pandas DataFrame"
        if inputs is None:
            raise BadInput(f"{model} has no signature, so its inputs cannot be checked or logged; {remedy}")
        if inputs and inputs[0]["type"] == "tensor":
            raise BadInput(f"{model} takes a tensor, not named columns; {remedy}")
        features = []
        for column in inputs:
            name, kind = column.get("name"), column["type"]
            if name is None or kind not in _SCORING_TYPES:
                raise BadInput(f"{model} has the input {name!r} of type {kind}, which is no scalar; {remedy}")
            features.append(Feature(name, kind, column.get("required", True)))
        folded: dict[str, str] = {}
        for feature in features:
            twin = folded.setdefault(feature.name.lower(), feature.name)
            if twin != feature.name:
                raise BadInput(
                    f"{model} has features {twin!r} and {feature.name!r}, which differ in case only; rename one"
                )
        return cls(features)

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        """Make a batch of a list of mappings; keys that are no features are ignored.

        Raises BadInput that names the row and the feature.
        """
        return self.from_columns(
            {name: [record.get(name, _ABSENT) for record in records] for name in self.names}, len(records)
        )

    def from_columns(self, columns: Mapping[str, Sequence[Any]], n_rows: int) -> pa.RecordBatch:
        """Make a batch of columns of Python values; columns that are no features are ignored."""
        usual = self._from_floats(columns, n_rows)
        if usual is not None:
            return usual
        arrays = []
        for feature in self.features:
            values = columns.get(feature.name)
            if values is None:
                if feature.required:
                    raise self._missing(feature, columns)
                arrays.append(pa.nulls(n_rows, feature.arrow_type))
            else:
                arrays.append(_to_array(feature, values))
        return pa.RecordBatch.from_arrays(arrays, schema=self.arrow)

    def _from_floats(self, columns: Mapping[str, Sequence[Any]], n_rows: int) -> pa.RecordBatch | None:
        """Make a batch in a third of the time where all features are floats, and all of their values are there."""
        if self.one_numpy_type is None or not columns.keys() >= self.name_set:
            return None
        values = [columns[name] for name in self.names]
        if set(map(type, chain.from_iterable(values))) != {float} or set(map(len, values)) != {n_rows}:
            return None
        whole = pa.array(np.array(values, np.float64).reshape(-1))
        arrays = [whole.slice(start, n_rows) for start in range(0, len(whole), n_rows)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.arrow)

    def from_table(self, table: pa.Table) -> pa.Table:
        """Select and cast the features of a table; other columns are ignored.

        Raises BadInput that names the column, the type found and the type expected.
        """
        present = Counter(table.column_names)
        arrays = []
        for feature in self.features:
            if present[feature.name] > 1:
                raise BadInput(
                    f"column {feature.name!r} is there {present[feature.name]} times; keep one of them"
                )
            if feature.name in present:
                arrays.append(_cast(feature, table.column(feature.name)))
            elif feature.required:
                raise self._missing(feature, table.column_names)
            else:
                arrays.append(pa.nulls(table.num_rows, feature.arrow_type))
        return pa.table(arrays, schema=self.arrow)

    def split_valid(
        self, records: Sequence[Mapping[str, Any]]
    ) -> tuple[pa.RecordBatch, list[int], dict[int, str]]:
        """Separate rows that fit from rows that do not.

        Returns the batch of those that fit, their positions in `records`, and the reason for each that does not.
        """
        everyone = list(range(len(records)))
        try:
            return self.from_records(records), everyone, {}
        except BadInput:
            pass
        reasons: dict[int, str] = {}
        for i, record in enumerate(records):
            try:
                self.from_records([record])
            except BadInput as error:
                reasons[i] = error.message
        kept = [i for i in everyone if i not in reasons]
        return self.from_records([records[i] for i in kept]), kept, reasons

    def to_frame(self, batch: pa.RecordBatch | pa.Table) -> pd.DataFrame:
        """Make the pandas frame that the model was trained to take: the signature's dtypes, missing as NaN."""
        import pandas as pd

        if self.one_numpy_type is not None:
            return pd.DataFrame(self.to_matrix(batch), columns=list(self.names), copy=False)
        data = {f.name: _pandas_column(f, batch.column(i)) for i, f in enumerate(self.features)}
        return pd.DataFrame(data, copy=False)

    def to_matrix(
        self, batch: pa.RecordBatch | pa.Table, order: Literal["C", "F"] = "F"
    ) -> np.ndarray[Any, Any]:
        """Make a matrix of n rows x k features in `one_numpy_type`, missing as NaN; of a table in NumPy's `order`."""
        if isinstance(batch, pa.RecordBatch):
            whole = batch.to_tensor(null_to_nan=True, row_major=False).to_numpy()
            return np.asarray(whole, self.one_numpy_type)
        matrix = np.empty((batch.num_rows, len(self.features)), dtype=self.one_numpy_type, order=order)
        for i in range(len(self.features)):
            at = 0
            for piece in batch.column(
                i
            ).chunks:  # one by one, as Arrow would put them together only to be copied again
                matrix[at : at + len(piece), i] = piece.to_numpy(zero_copy_only=False)
                at += len(piece)
        return matrix

    def to_lists(self, batch: pa.RecordBatch | pa.Table) -> list[list[Any]]:
        """Make a list of Python values of each feature; datetimes are microseconds since 1970 UTC."""
        if self.one_numpy_type is not None and isinstance(batch, pa.RecordBatch):
            with suppress(pa.ArrowException):  # it has nulls, which no tensor knows
                lists: list[list[Any]] = batch.to_tensor(row_major=False).to_numpy().T.tolist()
                return lists
        return [
            (column.cast(pa.int64()) if feature.type == "datetime" else column).to_pylist()
            for feature, column in zip(self.features, batch.columns, strict=True)
        ]

    @cached_property
    def one_numpy_type(self) -> type | None:
        """Return float64 or float32 when all features are that: one matrix is cheaper than a column each."""
        kinds = {feature.type for feature in self.features}
        return _NUMPY_TYPES[kinds.pop()] if kinds in ({"double"}, {"float"}) else None

    def _missing(self, feature: Feature, given: Any) -> BadInput:
        hint = nearest(feature.name, [name for name in given if name not in self.names])
        return BadInput(
            f"feature {feature.name!r} ({feature.type}) is missing{hint}; the model needs: {', '.join(self.names)}"
        )


class _Absent:
    """The type of the mark for a key that a record lacks."""


_ABSENT: Any = _Absent()


def _to_array(feature: Feature, values: Sequence[Any]) -> pa.Array:
    kinds = set(map(type, values))
    if kinds <= _SURE_TYPES.get(feature.type, _NONE):
        return pa.array(values, feature.arrow_type)
    if type(_ABSENT) in kinds:
        if feature.required:
            raise _first_complaint(feature, values)
        return _to_array(feature, [None if value is _ABSENT else value for value in values])
    if not all(_kind_fits(feature, kind) for kind in kinds):
        raise _first_complaint(feature, values)
    try:
        if feature.type == "datetime":
            values = [_to_datetime(value) for value in values]
        # Arrow truncates 3.7 to 3 without a word
        if (
            feature.type in _CANNOT_BE_MISSING
            and float in kinds
            and any(v != int(v) for v in values if v is not None)
        ):
            raise _first_complaint(feature, values)
        array = pa.array(values, feature.arrow_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise _first_complaint(feature, values) from None
    if array.null_count and feature.required and feature.type in _CANNOT_BE_MISSING:
        raise _first_complaint(feature, values)
    if feature.type == "integer" and not _fits_int32(array):
        raise _first_complaint(feature, values)
    return array


def _fits_int32(array: pa.Array | pa.ChunkedArray) -> bool:
    """Tell whether whole numbers fit the model's 32 bits: numpy would wrap those that do not, without a word."""
    bounds = pc.min_max(array).as_py()
    return bounds["min"] is None or (bounds["min"] >= _INT32.min and bounds["max"] <= _INT32.max)


def _kind_fits(feature: Feature, kind: type) -> bool:
    if kind is type(None):
        return True
    if kind in (bool, np.bool_):
        return feature.type == "boolean"
    return issubclass(kind, _PYTHON_TYPES[feature.type])


def _first_complaint(feature: Feature, values: Sequence[Any]) -> BadInput:
    """Find the first value that does not fit: done only once something failed, so that good input pays nothing."""
    for i, value in enumerate(values):
        if value is _ABSENT:
            return BadInput(f"row {i}: feature {feature.name!r} ({feature.type}) is missing")
        if value is None:
            if feature.required and feature.type in _CANNOT_BE_MISSING:
                return BadInput(
                    f"row {i}: feature {feature.name!r} is null, but {feature.type} has no missing value; "
                    "log the model with this column as double to allow it"
                )
        elif not _value_fits(feature, value):
            expected = "a datetime in ISO 8601" if feature.type == "datetime" else feature.type
            return BadInput(
                f"row {i}: feature {feature.name!r} must be {expected}, got {type(value).__name__} {short(value)}"
            )
    return BadInput(f"feature {feature.name!r} must be a column of {feature.type}")


def _value_fits(feature: Feature, value: Any) -> bool:
    if not _kind_fits(feature, type(value)):
        return False
    try:
        if feature.type == "datetime":
            value = _to_datetime(value)
        if feature.type in _CANNOT_BE_MISSING and value != int(value):
            return False
        if feature.type == "integer" and not _INT32.min <= value <= _INT32.max:
            return False
        pa.array([value], feature.arrow_type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def _to_datetime(value: Any) -> Any:
    """Parse ISO 8601; naive times are UTC. Raises ValueError."""
    if isinstance(value, str):
        import pandas as pd

        return pd.to_datetime(value, utc=True).to_pydatetime()
    return value


def _cast(feature: Feature, column: pa.ChunkedArray) -> pa.ChunkedArray:
    found, wanted = column.type, feature.arrow_type
    if pa.types.is_dictionary(found):
        column, found = column.cast(found.value_type), found.value_type
    numeric = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
    allowed = (
        found == wanted
        or pa.types.is_null(found)
        or (feature.is_numeric and numeric)
        or (
            pa.types.is_string(wanted) and (pa.types.is_large_string(found) or pa.types.is_string_view(found))
        )
        or (pa.types.is_timestamp(wanted) and (pa.types.is_timestamp(found) or pa.types.is_date(found)))
    )
    if not allowed:
        raise BadInput(f"column {feature.name!r} must be {feature.type}, found {found}")
    to_whole = column.null_count == 0 and pa.types.is_floating(found) and pa.types.is_integer(wanted)
    if to_whole and pc.any(pc.not_equal(column, pc.trunc(column))).as_py():
        raise BadInput(f"column {feature.name!r} must be {feature.type}, found {found} with fractions")
    try:
        cast = column.cast(wanted)
    except pa.ArrowException as error:
        raise BadInput(f"column {feature.name!r} must be {feature.type}, found {found}: {error}") from None
    if cast.null_count and feature.required and feature.type in _CANNOT_BE_MISSING:
        raise BadInput(
            f"column {feature.name!r} has {cast.null_count} nulls, but {feature.type} has no missing value"
        )
    if feature.type == "integer" and not _fits_int32(cast):
        raise BadInput(f"column {feature.name!r} must be integer, found numbers beyond 32 bits")
    return cast


def _pandas_column(feature: Feature, column: pa.Array | pa.ChunkedArray) -> Any:
    import pandas as pd

    if feature.type == "string":
        series = column.to_pandas()
        return series.where(series.notna(), np.nan) if series.dtype == object else series
    if feature.type == "datetime":
        return column.cast(pa.timestamp("ns")).to_pandas()
    values = column.to_numpy(**_numpy_options(column))
    if feature.type == "boolean" or column.null_count:
        return values
    return pd.Series(values.astype(_NUMPY_TYPES[feature.type], copy=False), copy=False)


def _numpy_options(column: Any) -> dict[str, bool]:
    """Arrays must be told that a copy is fine; chunked columns neither need nor take the option."""
    return {} if isinstance(column, (pa.Table, pa.ChunkedArray)) else {"zero_copy_only": False}


def short(value: Any) -> str:
    """Return a value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
