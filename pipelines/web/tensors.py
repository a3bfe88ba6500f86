"""The tensors of the Open Inference Protocol (V2): from a request's to columns, from an answer's rows to tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from mlflow_flywheel.pipelines.errors import BadInput, nearest
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema, short

from .responses import to_json

_BITS = (8, 16, 32, 64)
_RANGES = {f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in _BITS}
_RANGES |= {f"UINT{bits}": (0, 2**bits - 1) for bits in _BITS}
_KINDS: dict[str, tuple[type, ...]] = {
    "BOOL": (bool,),
    "BYTES": (str,),
    **{f"FP{bits}": (int, float) for bits in (16, 32, 64)},
    **dict.fromkeys(_RANGES, (int,)),
}
DATATYPES = tuple(_KINDS)
_OF_FEATURES = {
    "double": "FP64",
    "float": "FP32",
    "integer": "INT32",
    "long": "INT64",
    "string": "BYTES",
    "boolean": "BOOL",
    "datetime": "BYTES",
}
PREDICT, PREDICTION_ID = "predict", "prediction_id"


def datatype_of(feature: Feature) -> str:
    """Return the datatype in which a feature is best sent; datetimes are ISO 8601."""
    return _OF_FEATURES[feature.type]


def read_tensors(inputs: Any, schema: FeatureSchema) -> tuple[dict[str, Sequence[Any]], int]:
    """Return the columns and the number of rows of a request's inputs.

    They are one tensor [n] or [n, 1] per column, by name, or one [n, k] of all k features in their order. Raises
    BadInput that names the tensor.
    """
    if not isinstance(inputs, list) or not inputs:
        raise BadInput('inputs must be a list of tensors like {"name", "shape", "datatype", "data"}')
    columns: dict[str, Sequence[Any]] = {}
    counts: dict[str, int] = {}
    for tensor in inputs:
        name, shape, values = _read(tensor)
        if name in counts:
            raise BadInput(f"input {name!r} is there twice; keep one of them")
        counts[name] = shape[0]
        if len(inputs) == 1 and len(shape) == 2 and name not in schema.names:
            return _split(name, shape, values, schema), shape[0]
        if shape[1:] not in ([], [1]):
            raise BadInput(
                f"input {name!r} has the shape {shape}; send [n] or [n, 1] per feature, by its name: "
                + ", ".join(schema.names)
            )
        columns[name] = values
    if len(set(counts.values())) > 1:
        raise BadInput(f"the inputs have different numbers of rows: {counts}")
    return columns, next(iter(counts.values()))


def _read(tensor: Any) -> tuple[str, list[int], list[Any]]:
    """Return the name, the shape and the flat values of one tensor."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise BadInput("an input must be an object with name, shape, datatype and data")
    name, datatype = tensor["name"], tensor.get("datatype")
    shape = _shape(name, tensor.get("shape"))
    if not isinstance(datatype, str) or datatype not in _KINDS:
        raise BadInput(
            f"input {name!r}: datatype must be one of {', '.join(DATATYPES)}, got {short(datatype)}"
            + nearest(str(datatype), DATATYPES)
        )
    if not isinstance(tensor.get("data"), list):
        raise BadInput(
            f"input {name!r}: data must be a list of values in JSON; the binary tensor data extension is not supported"
        )
    values = _flat(name, shape, tensor["data"])
    _check_values(name, datatype, values)
    return name, shape, values


def _shape(name: str, shape: Any) -> list[int]:
    """Check a shape: no row is without values, for [1000000000, 0] would have no data, but rows."""
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(shape, list) or not whole or len(shape) not in (1, 2) or 0 in shape[1:]:
        raise BadInput(f"input {name!r}: shape must be [n] or [n, k], got {short(shape)}")
    return shape


def _flat(name: str, shape: list[int], data: list[Any]) -> list[Any]:
    """Return the values of flat or nested data in row-major order."""
    if len(shape) == 2 and any(isinstance(part, list) for part in data):
        if not all(isinstance(part, list) and len(part) == shape[1] for part in data):
            raise BadInput(f"input {name!r}: its nested data does not have the shape {shape}")
        data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise BadInput(
            f"input {name!r}: the shape {shape} takes {math.prod(shape)} values, data has {len(data)}"
        )
    return data


def _check_values(name: str, datatype: str, values: list[Any]) -> None:
    """Raise BadInput for a value that the datatype cannot hold; null is for the model's signature to judge."""
    allowed = {*_KINDS[datatype], type(None)}
    if not allowed.issuperset(map(type, values)):
        i, value = next((i, value) for i, value in enumerate(values) if type(value) not in allowed)
        raise BadInput(f"input {name!r}: value {i} is no {datatype}: {short(value)}")
    if datatype in _RANGES:
        low, high = _RANGES[datatype]
        for i, value in enumerate(values):
            if value is not None and not low <= value <= high:
                raise BadInput(f"input {name!r}: value {i} is no {datatype}: {short(value)}")


def _split(name: str, shape: list[int], values: list[Any], schema: FeatureSchema) -> dict[str, Sequence[Any]]:
    """Cut one matrix of all features into columns."""
    kinds = {feature.type for feature in schema.features}
    k = len(schema.names)
    if len(kinds) != 1 or not schema.features[0].is_numeric:
        raise BadInput(
            f"input {name!r} is no feature, and the features are not all of one numeric type; send one tensor for "
            f"each of: {', '.join(schema.names)}"
        )
    if shape[1] != k:
        raise BadInput(
            f"input {name!r} has the shape {shape}; one tensor of all features has the shape [n, {k}], in the order: "
            + ", ".join(schema.names)
        )
    return {column: values[i::k] for i, column in enumerate(schema.names)}


def prediction_tensors(native: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a model's own answers as tensors: one, or one for each column of a model that answers several."""
    if native and isinstance(native[0], Mapping):
        columns = {str(name): [row[name] for row in native] for name in native[0]}
        if len(columns) > 1:
            return [_tensor(name, values) for name, values in columns.items() if name != PREDICTION_ID]
        native = next(iter(columns.values()))
    return [_tensor(PREDICT, native)]


def id_tensor(ids: Sequence[str]) -> dict[str, Any]:
    """Return the ids of the predictions as a tensor."""
    return {"name": PREDICTION_ID, "datatype": "BYTES", "shape": [len(ids)], "data": ids}


def _tensor(name: str, values: Sequence[Any]) -> dict[str, Any]:
    shape = [len(values)]
    while values and isinstance(values[0], (list, tuple)):
        shape.append(len(values[0]))
        values = list(chain.from_iterable(values))
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {bool}:
        datatype = "BOOL"
    elif kinds == {int}:
        datatype = "INT64"
    elif kinds <= {int, float}:
        datatype = "FP64"
    else:
        datatype, values = "BYTES", [_text(value) for value in values]
    return {"name": name, "datatype": datatype, "shape": shape, "data": values}


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return to_json(value).decode().strip('"')
