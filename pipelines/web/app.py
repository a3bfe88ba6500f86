"""The Flask app of a web worker: MLflow's scoring protocol over the scoring core, and feedback.

It runs under any WSGI server. A scored request is in the spool before its answer is made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, Unavailable
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.ids import new_prediction_ids
from mlflow_flywheel.pipelines.scoring import Request, ScoringCore

from .metrics import CONTENT_TYPE, WebMetrics
from .openapi import document
from .parsing import Parser

_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
# MLflow's scoring server uses this name where its registry says INVALID_PARAMETER_VALUE
_BAD_REQUEST = "BAD_REQUEST"
_HTTP_CODES = {404: "ENDPOINT_NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "REQUEST_TOO_LARGE"}


class Busy(Unavailable):
    """More requests are waiting than the deployment allows."""

    http_status = 429
    error_code = "RESOURCE_EXHAUSTED"


class Gate:
    """Lets a few requests score at once and a bounded number wait; the others are told to come back."""

    def __init__(self, inside: int, waiting: int) -> None:
        self._slots = threading.BoundedSemaphore(inside)
        self._places = threading.BoundedSemaphore(inside + waiting)
        self._waiting = waiting

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a slot. Raises Busy when too many wait already."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{self._waiting} requests are waiting already (max_queue); try again in a second")
        try:
            with self._slots:
                yield
        finally:
            self._places.release()


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
                with gate.enter():
                    rows = parser.parse(request.get_data(cache=False), request.headers.get("Content-Type"))
                    ids = new_prediction_ids(rows.features.num_rows)
                    asked = Request(rows.features, ids, rows.client_request_ids, rows.event_times)
                    scored = core.score(asked, rows.params)
                counted.status, counted.rows = 200, len(ids)
                return _json({"predictions": scored.predictions.native, "prediction_ids": ids})
            except (FlywheelError, HTTPException) as error:
                refusal = _refuse(error)
                counted.status = refusal.status_code
                return refusal

    @app.post("/feedback")
    def feedback() -> Response:
        return _json({"accepted": labels.submit(_feedback_rows(request.get_data(cache=False)))})

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


def _feedback_rows(body: bytes) -> list[Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error}") from None
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
    import logging

    logging.getLogger(__name__).error("request failed", exc_info=error)
    return _json(
        {"error_code": "INTERNAL_ERROR", "message": "the service made a mistake; its log says more"}, 500
    )
