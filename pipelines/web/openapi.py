"""The service described in OpenAPI 3, from the model's own signature and input example."""

from __future__ import annotations

from typing import Any

from mlflow_flywheel.pipelines.scoring import ScoringCore

_TYPES: dict[str, dict[str, Any]] = {
    "double": {"type": "number", "nullable": True},
    "float": {"type": "number", "nullable": True},
    "integer": {"type": "integer", "format": "int32"},
    "long": {"type": "integer", "format": "int64"},
    "string": {"type": "string", "nullable": True},
    "boolean": {"type": "boolean"},
    "datetime": {"type": "string", "format": "date-time", "nullable": True},
}


def document(core: ScoringCore) -> dict[str, Any]:
    """Return the OpenAPI document of a deployment."""
    scorer = core.scorer
    row = {
        "type": "object",
        "properties": {feature.name: _TYPES[feature.type] for feature in scorer.schema.features},
        "required": [feature.name for feature in scorer.schema.features if feature.required],
    }
    one_or_many = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    body: dict[str, Any] = {
        "type": "object",
        "required": ["dataframe_records"],
        "properties": {
            "dataframe_records": {"type": "array", "items": row},
            "client_request_id": one_or_many,
            "event_time": one_or_many,
            "params": {"type": "object"},
        },
    }
    if scorer.input_example is not None:
        body["example"] = {"dataframe_records": scorer.input_example.slice(0, 1).to_pylist()}
    answer = {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "items": {}},
            "prediction_ids": {"type": "array", "items": {"type": "string"}},
        },
    }
    label = {
        "type": "object",
        "properties": {
            "prediction_id": {"type": "string"},
            "client_request_id": {"type": "string"},
            "label": {"oneOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string"}]},
            "label_time": {"type": "string", "format": "date-time"},
        },
        "required": ["label"],
    }
    labels = {"type": "object", "properties": {"feedback": {"type": "array", "items": label}}}
    accepted = {"type": "object", "properties": {"accepted": {"type": "integer"}}}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": f"{core.deployment}: {scorer.ref.name}",
            "version": scorer.ref.version or "unregistered",
        },
        "paths": {
            "/invocations": {"post": _operation("Score rows", body, answer)},
            "/feedback": {"post": _operation("Give labels of earlier predictions", labels, accepted)},
        },
    }


def _operation(summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    refused = {
        "type": "object",
        "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}},
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, **content(body)},
        "responses": {
            "200": {"description": "done", **content(answer)},
            "400": {"description": "something does not fit; the message says what", **content(refused)},
            "429": {"description": "too many requests are waiting; see Retry-After", **content(refused)},
        },
    }
