"""The shapes of bodies and answers in OpenAPI 3.0, those of rows from the model's own signature."""

from __future__ import annotations

import sys
from typing import Any

from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

from .tensors import DATATYPES

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_WHOLE: Schema = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1}
_LARGEST = sys.float_info.max  # a number beyond is no JSON that any double holds, and is refused
_REAL: Schema = {"type": "number", "format": "double", "minimum": -_LARGEST, "maximum": _LARGEST}
_TIME: Schema = {"type": "string", "format": "date-time"}
_TYPES: dict[str, Schema] = {
    "double": _REAL,
    "float": _REAL,
    "integer": {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": _WHOLE,
    "string": _TEXT,
    "boolean": {"type": "boolean"},
    "datetime": _TIME,
}
_NEVER_NULL = ("integer", "long", "boolean")


def ref(name: str) -> Schema:
    """Refer to one of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def schemas(features: FeatureSchema) -> dict[str, Schema]:
    """Return all shapes by name."""
    return {**_of_rows(features), **_of_answers(), **_of_feedback(), **_of_v2()}


def _of_rows(features: FeatureSchema) -> dict[str, Schema]:
    k = len(features.names)
    values = _list({"type": "array", "minItems": 1, "items": {}})
    plain = {"type": "array", "minItems": k, "maxItems": k, "items": {}}
    columns = {"type": "array", "uniqueItems": True, "items": _TEXT}
    split = _object({"columns": columns, "data": values, "index": {"type": "array", "items": {}}}, ["data"])
    row_lists = _list(plain)
    if k == 1:
        row_lists = {"anyOf": [row_lists, _list(_value(features.features[0]))]}
    by_column = _object(
        {f.name: {"anyOf": [_list(_value(f)), _value(f)]} for f in features.features}, _required(features)
    )
    forms = {
        "dataframe_split": split,
        "dataframe_records": _list(ref("Row")),
        "instances": {"anyOf": [_list(ref("Row")), row_lists]},
        "inputs": {"anyOf": [by_column, _list(ref("Row")), row_lists]},
    }
    said = {"params": _object({}, nullable=True), **_said()}
    return {
        "Row": _object({f.name: _value(f) for f in features.features}, _required(features)),
        **{_form_name(form): _object({form: shape, **said}, [form]) for form, shape in forms.items()},
        "Rows": {"oneOf": [ref(_form_name(form)) for form in forms]},
    }


def _form_name(form: str) -> str:
    return "".join(part.capitalize() for part in form.split("_"))


def _said() -> dict[str, Schema]:
    """What a caller may say of its rows: once for all of them, or a list with one entry per row."""
    one_id: Schema = {"anyOf": [_TEXT, _REAL], "nullable": True}
    one_time: Schema = {"anyOf": [_TIME, _REAL], "nullable": True}
    return {
        "client_request_id": {
            "description": "your own key for a row, for feedback later: one per row, or one for all",
            "anyOf": [one_id, {"type": "array", "items": one_id}],
        },
        "event_time": {
            "description": "when it happened, ISO 8601 or milliseconds since 1970: one per row, or one for all",
            "anyOf": [one_time, {"type": "array", "items": one_time}],
        },
    }


def _of_answers() -> dict[str, Schema]:
    return {
        "Predictions": _object(
            {
                "predictions": {
                    "type": "array",
                    "items": {},
                    "description": "what the model says, row by row",
                },
                "prediction_ids": _list(_TEXT),
            },
            ["predictions", "prediction_ids"],
        ),
        "Refusal": _object({"error_code": _TEXT, "message": _TEXT}, ["error_code", "message"]),
        "About": _object(
            {
                "deployment": _TEXT,
                "model_name": _TEXT,
                "model_version": _TEXT,
                "since": _TIME,
                "features": _list(
                    _object({"name": _TEXT, "type": _TEXT, "required": {"type": "boolean"}}, ["name", "type"])
                ),
                "example": ref("Rows"),
                "links": {"type": "object", "additionalProperties": _TEXT},
            },
            ["deployment", "model_name", "model_version", "since", "features", "example", "links"],
        ),
    }


def _of_feedback() -> dict[str, Schema]:
    key = {"type": "string", "minLength": 1, "nullable": True}
    fields: dict[str, Schema] = {
        "prediction_id": key,
        "client_request_id": key,
        "label": {"anyOf": [_REAL, {"type": "boolean"}, _TEXT], "description": "what came true"},
        "label_time": {"anyOf": [_TIME, _REAL], "nullable": True},
        "source": {"type": "string", "nullable": True},
    }
    label = _object(fields, ["label"])
    label |= {
        "additionalProperties": False,
        "description": "it names its prediction by prediction_id, or by your own client_request_id",
    }
    wrapped = _object({"feedback": {"type": "array", "items": ref("Label")}}, ["feedback"])
    wrapped["additionalProperties"] = False
    return {
        "Label": label,
        "Labels": {"anyOf": [wrapped, {"type": "array", "items": ref("Label")}, ref("Label")]},
        "Accepted": _object({"accepted": _COUNT}, ["accepted"]),
    }


def _of_v2() -> dict[str, Schema]:
    shape = {"type": "array", "minItems": 1, "maxItems": 2, "items": _COUNT}
    datatype = {"type": "string", "enum": list(DATATYPES)}
    tensor = {"name": _TEXT, "shape": shape, "datatype": datatype, "data": {"type": "array", "items": {}}}
    described = {
        "name": _TEXT,
        "datatype": datatype,
        "shape": {"type": "array", "items": {"type": "integer"}},
    }
    served = {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": _list(_object(described, list(described))),
        "outputs": _list(_object(described, list(described))),
    }
    parameters = _object({**_said(), "params": _object({}, nullable=True)}, nullable=True)
    output = _object({"name": _TEXT, "parameters": _object({}, nullable=True)}, ["name"])
    request = {
        "id": {"type": "string", "nullable": True, "description": "echoed; names a single row for feedback"},
        "parameters": parameters,
        "inputs": _list(_object({**tensor, "parameters": _object({}, nullable=True)}, list(tensor))),
        "outputs": {"type": "array", "items": output, "nullable": True},
    }
    answer = {"id": _TEXT, "model_name": _TEXT, "model_version": _TEXT, "outputs": _list(ref("V2Tensor"))}
    return {
        "V2Tensor": _object(tensor, list(tensor)),
        "V2Request": _object(request, ["inputs"]),
        "V2Answer": _object(answer, ["model_name", "outputs"]),
        "V2Model": _object(served, list(served)),
        "V2ModelReady": _object({"name": _TEXT, "ready": {"type": "boolean"}}, ["name", "ready"]),
        "V2Server": _object(
            {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}},
            ["name", "version", "extensions"],
        ),
        "V2Live": _object({"live": {"type": "boolean"}}, ["live"]),
        "V2Ready": _object({"ready": {"type": "boolean"}}, ["ready"]),
        "V2Refusal": _object({"error": _TEXT}, ["error"]),
    }


def _value(feature: Feature) -> Schema:
    can_be_null = feature.type not in _NEVER_NULL or not feature.required
    return {**_TYPES[feature.type], **({"nullable": True} if can_be_null else {})}


def _required(features: FeatureSchema) -> list[str]:
    return [feature.name for feature in features.features if feature.required]


def _object(
    properties: dict[str, Schema], required: list[str] | None = None, nullable: bool = False
) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return {**schema, "nullable": True} if nullable else schema


def _list(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}
