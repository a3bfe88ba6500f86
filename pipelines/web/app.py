"""The Flask app of a web worker: the scoring protocols over the scoring core, feedback, and what describes them.

It runs under any WSGI server. A scored request is in the spool before its answer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response
from werkzeug.wsgi import get_content_length

from mlflow_flywheel.pipelines.backlog import Backlog
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.prometheus import CONTENT_TYPE
from mlflow_flywheel.pipelines.scoring import ScoringCore

from . import docs, home, v2
from .endpoint import Endpoint, read_body
from .gate import Gate
from .metrics import WebMetrics
from .openapi import document
from .parsing import JSON, Parser, read_json
from .responses import Form, confess, json_response, mlflow_form, refuse
from .service import Answer, Service
from .wsgi import Environ, StartResponse, WSGIApp

INVOCATIONS = "/invocations"
_QUICK_BYTES = 64 * 1024  # more takes longer to read than other requests should wait for


def create_app(
    core: ScoringCore,
    service: Service,
    parser: Parser,
    *,
    labels: FeedbackLog,
    gate: Gate,
    metrics: WebMetrics,
    max_body_bytes: int,
    backlog: Callable[[], Backlog] = lambda: Backlog(0, 0.0, 0),
    mlflow_version: str = "",
    secured: bool = False,
) -> Flask:
    """Return the app of one model version: `core` is what is described, `service` what answers.

    `backlog` tells what of its answers is not in the inference table yet; `secured` that callers need a token.
    """
    app = Flask(__name__)
    endpoint = Endpoint(service, gate, metrics, max_body_bytes)

    def invocations(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return endpoint.answer(environ, start_response, parser.parse, _mlflow_answer)

    app.add_url_rule(INVOCATIONS, INVOCATIONS, methods=["POST"], view_func=lambda: invocations)
    app.wsgi_app = _Shortcut(app.wsgi_app, invocations)  # type: ignore[method-assign]

    @app.post("/feedback")
    def feedback() -> Response:
        return json_response(
            {"accepted": labels.submit(_feedback_rows(read_body(request.environ, max_body_bytes)))}
        )

    for part in (v2.routes(core, parser, endpoint), docs.routes(core.deployment), home.routes(core)):
        app.register_blueprint(part)
    for path in ("/ping", "/health"):
        app.add_url_rule(path, path, lambda: Response("\n", mimetype="application/json"))
    app.add_url_rule("/version", "version", lambda: Response(mlflow_version, mimetype="text/plain"))
    app.add_url_rule(
        "/metrics", "metrics", lambda: Response(metrics.text(backlog()), content_type=CONTENT_TYPE)
    )
    described = document(core, secured)
    app.add_url_rule("/openapi.json", "openapi", lambda: json_response(described))

    for kind in (FlywheelError, HTTPException):
        app.register_error_handler(kind, lambda error: refuse(error, _form()))
    app.register_error_handler(Exception, lambda error: confess(error, _form()))
    return app


def is_quick(environ: Environ) -> bool:
    """Tell whether the app answers a request without waiting, by what it is: a few rows in JSON to be scored."""
    return (
        environ["PATH_INFO"] == INVOCATIONS
        and environ["REQUEST_METHOD"] == "POST"
        and environ.get("CONTENT_TYPE", JSON).startswith(JSON)
        and (get_content_length(environ) or _QUICK_BYTES + 1) <= _QUICK_BYTES
    )


class _Shortcut:
    """Middleware that takes scoring requests past Flask, which costs more than all else that they need."""

    def __init__(self, app: WSGIApp, invocations: WSGIApp) -> None:
        self._app = app
        self._invocations = invocations

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == INVOCATIONS and environ["REQUEST_METHOD"] == "POST":
            return self._invocations(environ, start_response)
        return self._app(environ, start_response)


def _form() -> Form:
    """Return how the caller's protocol writes errors, also where no route of it was met."""
    return v2.v2_form if v2.is_v2(request.path) else mlflow_form


def _mlflow_answer(answer: Answer) -> dict[str, Any]:
    return {"predictions": answer.predictions, "prediction_ids": answer.prediction_ids}


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
