"""Answers as HTTP: JSON, and refusals in the form of the protocol that the caller speaks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import orjson
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Response

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError

_log = logging.getLogger(__name__)
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
# MLflow's scoring server uses this name where its registry says INVALID_PARAMETER_VALUE
_BAD_REQUEST = "BAD_REQUEST"
_HTTP_CODES = {404: "ENDPOINT_NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "REQUEST_TOO_LARGE"}


def to_json(content: Any) -> bytes:
    """Write JSON; NaN and infinity become null, numpy values are numbers, anything else is its text."""
    return orjson.dumps(content, default=str, option=_JSON_OPTIONS)


def json_response(content: Any, status: int = 200) -> Response:
    """Return an answer with JSON in it."""
    return Response(to_json(content), status, mimetype="application/json")


Form = Callable[[str, str], Any]


def mlflow_form(code: str, message: str) -> dict[str, str]:
    """Return a refusal's JSON as MLflow's scoring server writes it."""
    return {"error_code": code, "message": message}


def refuse(error: FlywheelError | HTTPException, form: Form = mlflow_form) -> Response:
    """Answer an error that the caller can understand; `form` makes its JSON of a code and a message."""
    if isinstance(error, FlywheelError):
        code = _BAD_REQUEST if isinstance(error, BadInput) else error.error_code
        response = json_response(form(code, error.message), error.http_status)
        if error.retryable:
            response.headers["Retry-After"] = "1"
        return response
    status = error.code or 500
    message = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        message = "the body is larger than max_body_bytes allows; send fewer rows at a time"
    code = _HTTP_CODES.get(status, error.name.upper().replace(" ", "_"))
    response = json_response(form(code, message), status)
    if status == 405 and getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(error.valid_methods)  # type: ignore[attr-defined]
    return response


def confess(error: Exception, form: Form = mlflow_form) -> Response:
    """Answer for a mistake of ours: the log has the traceback, the caller does not."""
    _log.error("request failed", exc_info=error)
    return json_response(form("INTERNAL_ERROR", "the service made a mistake; its log says more"), 500)
