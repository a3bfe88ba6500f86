"""One scoring request from its first byte to its answer, whichever protocol it speaks: bounded and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Response
from werkzeug.wsgi import get_content_length, get_input_stream

from mlflow_flywheel.pipelines.errors import FlywheelError

from .gate import Gate
from .metrics import WebMetrics
from .parsing import Rows
from .request_log import ROWS
from .responses import Form, confess, json_response, mlflow_form, refuse
from .service import Answer, Service
from .wsgi import Environ


class Endpoint:
    """Reads, scores and answers. It works on the WSGI environment, so that it runs with and without Flask."""

    def __init__(self, service: Service, gate: Gate, metrics: WebMetrics, max_body_bytes: int) -> None:
        self._service = service
        self._gate = gate
        self._metrics = metrics
        self._limit = max_body_bytes

    def answer(
        self,
        environ: Environ,
        parse: Callable[[bytes, str | None], Rows],
        render: Callable[[Answer], Any],
        form: Form = mlflow_form,
    ) -> Response:
        """Answer one request: `parse` gets its body and content type, `render` gives the answer's JSON.

        Never raises: `form` gives a refusal's JSON.
        """
        with self._metrics.request() as counted:
            try:
                length = get_content_length(environ)
                with self._gate.place(self._limit if length is None else min(length, self._limit)):
                    body = read_body(environ, self._limit)
                    answer = self._service.score(parse(body, environ.get("CONTENT_TYPE") or None))
                counted.status, counted.rows = 200, len(answer.prediction_ids)
                environ[ROWS] = counted.rows
                return json_response(render(answer))
            except (FlywheelError, HTTPException) as error:
                response = refuse(error, form)
            except Exception as error:  # noqa: BLE001 - whatever it was, the caller gets an answer
                response = confess(error, form)
            counted.status = response.status_code
            return response


def read_body(environ: Environ, limit: int) -> bytes:
    """Read a request's body. Raises RequestEntityTooLarge beyond `limit` bytes."""
    body: bytes = get_input_stream(environ, max_content_length=limit).read()
    if len(body) >= limit and get_content_length(environ) is None:  # Werkzeug cuts it there without a word
        raise RequestEntityTooLarge()
    return body
