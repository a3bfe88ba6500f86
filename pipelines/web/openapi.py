"""The service described in OpenAPI 3.0: every route, body and status code, with the model's own input example."""

from __future__ import annotations

from typing import Any

from mlflow_flywheel.pipelines.model import describe
from mlflow_flywheel.pipelines.prometheus import CONTENT_TYPE as METRICS_TYPE
from mlflow_flywheel.pipelines.scoring import ScoringCore

from .example import Example
from .guard import OPEN_PATHS
from .openapi_schemas import ref, schemas
from .parsing import CSV, JSON, PARQUET

_Operation = dict[str, Any]
_REFUSALS = {
    400: "something does not fit; the message says what",
    404: "this is not served here; the message says what is",
    405: "the path takes another method; see Allow",
    413: "the body is larger than max_body_bytes",
    415: "the body is of a kind, or in a charset, that is not taken",
    422: "more rows than max_rows",
    429: "too many requests are waiting; see Retry-After",
    500: "the model raised, or the service made a mistake",
    503: "what must be logged cannot be for now; see Retry-After",
    504: "the model took longer than timeout_seconds",
}
_NO_TOKEN = "the header Authorization: Bearer TOKEN is missing, or its token is wrong"
_SCORING = (400, 405, 413, 415, 422, 429, 500, 503, 504)
_RETRY_AFTER = {"description": "seconds to wait", "schema": {"type": "string"}}


def document(core: ScoringCore, secured: bool = False) -> dict[str, Any]:
    """Return the OpenAPI document of a deployment; when it is `secured`, with the token that its callers need."""
    scorer = core.scorer
    example = Example(core)
    shapes = schemas(scorer.schema)
    described: dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {
            "title": f"{core.deployment}: {describe(scorer.ref)}",
            "version": scorer.ref.version or "unregistered",
            "description": "Every prediction has a prediction_id; POST /feedback takes what came true.",
        },
        "paths": {
            "/invocations": {"post": _invocations(example)},
            "/feedback": {"post": _feedback()},
            **_v2_paths(core, example),
            **_other_paths(),
        },
        "components": {"schemas": {**shapes, "Rows": {**shapes["Rows"], "example": example.records}}},
    }
    if secured:
        _secure(described)
    return described


def _secure(described: dict[str, Any]) -> None:
    """Add the bearer token, and the 401 of whoever comes without, to all that is not open to everyone."""
    described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    refusal = {"description": _NO_TOKEN, "content": {JSON: {"schema": ref("Refusal")}}}
    for path, operations in described["paths"].items():
        if path in OPEN_PATHS:
            continue
        for operation in operations.values():
            operation["security"] = [{"token": []}]
            operation["responses"]["401"] = refusal


def _invocations(example: Example) -> _Operation:
    forms = {
        "dataframe_split": example.split,
        "dataframe_records": example.records,
        "instances": example.instances,
        "inputs": example.inputs,
    }
    body = {
        JSON: {
            "schema": ref("Rows"),
            "examples": {name: {"value": form} for name, form in forms.items()},
        },
        CSV: {"schema": {"type": "string", "description": "with a header line"}, "example": example.csv},
        PARQUET: {"schema": {"type": "string", "format": "binary"}},
    }
    return _operation("invocations", "Score rows", "Predictions", _SCORING, tag="MLflow", body=body)


def _feedback() -> _Operation:
    example = {"feedback": [{"client_request_id": "order-7", "label": 1}]}
    body = {JSON: {"schema": ref("Labels"), "example": example}}
    codes = (400, 405, 413, 500, 503)
    summary = "Give labels of earlier predictions"
    return _operation("feedback", summary, "Accepted", codes, tag="Feedback", body=body)


def _v2_paths(core: ScoringCore, example: Example) -> dict[str, Any]:
    served = core.scorer.ref
    name = _path_parameter("model_name", served.name)
    versioned = [name, _path_parameter("model_version", served.version)]

    def model(suffix: str, parameters: list[_Operation]) -> dict[str, Any]:
        def get(operation: str, summary: str, answer: str) -> _Operation:
            return {
                "get": _operation(
                    f"{operation}{suffix}", summary, answer, (404,), tag="V2", parameters=parameters
                )
            }

        infer = _operation(
            f"v2_infer{suffix}",
            "Score rows as tensors: one [n] or [n, 1] per feature, or one [n, k] of all in their order",
            "V2Answer",
            (404, *_SCORING),
            tag="V2",
            body={JSON: {"schema": ref("V2Request"), "example": example.v2}},
            parameters=parameters,
        )
        path = "/v2/models/{model_name}" + ("/versions/{model_version}" if suffix else "")
        return {
            path: get("v2_model", "What is served", "V2Model"),
            f"{path}/ready": get("v2_model_ready", "Whether it can be asked", "V2ModelReady"),
            f"{path}/infer": {"post": infer},
        }

    return {
        "/v2": {"get": _operation("v2_server", "What this server is", "V2Server", tag="V2")},
        "/v2/health/live": {"get": _operation("v2_live", "Whether it runs", "V2Live", tag="V2")},
        "/v2/health/ready": {"get": _operation("v2_ready", "Whether it can be asked", "V2Ready", tag="V2")},
        **model("", [name]),
        **(model("_version", versioned) if served.version else {}),
    }


def _other_paths() -> dict[str, Any]:
    """Return the paths for people and for what watches the service."""

    def get(name: str, summary: str, content: dict[str, Any]) -> dict[str, Any]:
        done = {"description": "done", "content": content}
        return {
            "get": {"operationId": name, "summary": summary, "tags": ["Service"], "responses": {"200": done}}
        }

    text: dict[str, Any] = {"schema": {"type": "string"}}
    page = {"text/html": text}
    empty: dict[str, Any] = {JSON: {}}
    return {
        "/": get("home", "What this is and how to call it", {**page, JSON: {"schema": ref("About")}}),
        "/docs": get("docs", "This description, to try out", page),
        "/openapi.json": get("openapi", "This description", {JSON: {"schema": {"type": "object"}}}),
        "/ping": get("ping", "Whether it answers", empty),
        "/health": get("health", "Whether it answers", empty),
        "/version": get("mlflow_version", "MLflow's version", {"text/plain": text}),
        "/metrics": get("metrics", "Counts for Prometheus", {METRICS_TYPE.partition(";")[0]: text}),
    }


def _operation(
    name: str,
    summary: str,
    answer: str,
    refusals: tuple[int, ...] = (),
    *,
    tag: str,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> _Operation:
    refusal = ref("V2Refusal" if tag == "V2" else "Refusal")
    responses: dict[str, Any] = {"200": {"description": "done", "content": {JSON: {"schema": ref(answer)}}}}
    for code in refusals:
        responses[str(code)] = {
            "description": _REFUSALS[code],
            "content": {JSON: {"schema": refusal}},
            **({"headers": {"Retry-After": _RETRY_AFTER}} if code in (429, 503) else {}),
        }
    return {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": {"required": True, "content": body}} if body else {}),
        "responses": responses,
    }


def _path_parameter(name: str, served: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [served]}}
