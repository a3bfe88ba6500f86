"""The Flask app of a web worker: MLflow's scoring protocol over the scoring core, and feedback.

It runs under any WSGI server. A scored request is in the spool before its answer is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.ids import new_prediction_ids
from mlflow_flywheel.pipelines.scoring import Request, ScoringCore

from .gate import Gate
from .metrics import CONTENT_TYPE, WebMetrics
from .openapi import document
from .parsing import Parser, read_json

_log = logging.getLogger(__name__)
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
# MLflow's scoring server uses this name where its registry says INVALID_PARAMETER_VALUE
_BAD_REQUEST = "BAD_REQUEST"
_HTTP_CODES = {404: "ENDPOINT_NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "REQUEST_TOO_LARGE"}


def create_app(
    core: ScoringCore,
    parser: Parser,
    *,
    labels: FeedbackLog,
    gate: Gate,
    metrics: WebMetrics,
    max_body_bytes: int,
    mlflow_version: str = "",
) -> Flask:
    """Return the app of one model version."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes

    @app.post("/invocations")
    def invocations() -> Response:
        with metrics.request() as counted:
            try:
                length = request.content_length
                with gate.place(max_body_bytes if length is None else min(length, max_body_bytes)):
                    body = _body(max_body_bytes)  # before the slot: a slow sender holds up nobody
                    with gate.slot():
                        answer = score(body, request.headers.get("Content-Type"))
                counted.status, counted.rows = 200, len(answer["prediction_ids"])
                return _json(answer)
            except (FlywheelError, HTTPException) as error:
                refusal = _refuse(error)
                counted.status = refusal.status_code
                return refusal

    def score(body: bytes, content_type: str | None) -> dict[str, list[Any]]:
        rows = parser.parse(body, content_type)
        ids = new_prediction_ids(rows.features.num_rows)
        asked = Request(rows.features, ids, rows.client_request_ids, rows.event_times)
        scored = core.score(asked, rows.params)
        return {"predictions": scored.predictions.native, "prediction_ids": ids}

    @app.post("/feedback")
    def feedback() -> Response:
        return _json({"accepted": labels.submit(_feedback_rows(_body(max_body_bytes)))})

    for path in ("/ping", "/health"):
        app.add_url_rule(path, path, lambda: Response("\n", mimetype="application/json"))
    app.add_url_rule("/version", "version", lambda: Response(mlflow_version, mimetype="text/plain"))
    app.add_url_rule("/metrics", "metrics", lambda: Response(metrics.text(), content_type=CONTENT_TYPE))
    described = document(core)
    app.add_url_rule("/openapi.json", "openapi", lambda: _json(described))

    handlers: list[tuple[type[Exception], Callable[[Any], Response]]] = [
        (FlywheelError, _refuse),
        (HTTPException, _refuse),
        (Exception, _confess),
    ]
    for kind, handler in handlers:
        app.register_error_handler(kind, handler)
    return app


def _body(limit: int) -> bytes:
    """Read the request's body. Raises RequestEntityTooLarge."""
    body = request.get_data(cache=False)
    if request.content_length is None and len(body) >= limit:  # Werkzeug cuts it there without a word
        raise RequestEntityTooLarge()
    return body


def _feedback_rows(body: bytes) -> list[Any]:
    data = read_json(body)
    if isinstance(data, dict) and set(data) == {"feedback"}:
        data = data["feedback"]
    elif isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise BadInput(
            'the body must be {"feedback": [{"prediction_id": ..., "label": ...}, ...]} or such a list'
        )
    return data


def _json(content: Any, status: int = 200) -> Response:
    return Response(
        orjson.dumps(content, default=str, option=_JSON_OPTIONS), status, mimetype="application/json"
    )


def _refuse(error: FlywheelError | HTTPException) -> Response:
    """Answer in the form of MLflow's scoring server: error_code and message."""
    if isinstance(error, FlywheelError):
        code = _BAD_REQUEST if isinstance(error, BadInput) else error.error_code
        response = _json({"error_code": code, "message": error.message}, error.http_status)
        if error.retryable:
            response.headers["Retry-After"] = "1"
        return response
    status = error.code or 500
    message = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        message = "the body is larger than max_body_bytes allows; send fewer rows at a time"
    response = _json(
        {"error_code": _HTTP_CODES.get(status, error.name.upper().replace(" ", "_")), "message": message},
        status,
    )
    if status == 405 and getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(error.valid_methods)  # type: ignore[attr-defined]
    return response


def _confess(error: Exception) -> Response:
    """Answer for a mistake of ours: the log has the traceback, the caller does not."""
    _log.error("request failed", exc_info=error)
    return _json(
        {"error_code": "INTERNAL_ERROR", "message": "the service made a mistake; its log says more"}, 500
    )
