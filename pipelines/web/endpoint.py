"""One scoring request from its first byte to its answer, whichever protocol it speaks: bounded and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Response
from werkzeug.wsgi import get_content_length, get_input_stream

from mlflow_flywheel.pipelines.errors import FlywheelError

from .deferred import Deferred
from .gate import Gate
from .metrics import WebMetrics
from .parsing import Rows
from .request_log import ROWS
from .responses import Form, confess, mlflow_form, refuse, to_json
from .service import Answer, Service
from .wsgi import Environ, StartResponse

_JSON = [("Content-Type", "application/json")]
Parse = Callable[[bytes, str | None], Rows]
Render = Callable[[Answer], Any]


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
        start_response: StartResponse,
        parse: Parse,
        render: Render,
        form: Form = mlflow_form,
    ) -> Iterable[bytes]:
        """Answer one request: `parse` gets its body and content type, `render` gives the answer's JSON.

        Waits for nothing but the body, and never raises: `form` gives a refusal's JSON.
        """
        request = _Request()
        try:
            length = get_content_length(environ)
            room = self._limit if length is None else min(length, self._limit)
            self._gate.enter(room)
            request.room = room
            future = self._service.submit(
                parse(read_body(environ, self._limit), environ.get("CONTENT_TYPE") or None)
            )
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller gets an answer
            refusal = _refusal(error, form)
            request.status = refusal.status_code
            self._end(request)
            return refusal(environ, start_response)

        def finish() -> Iterable[bytes]:
            try:
                answer = future.result()
                body = to_json(render(answer))
            except Exception as error:  # noqa: BLE001
                refusal = _refusal(error, form)
                request.status = refusal.status_code
                return refusal(environ, start_response)
            request.status, request.rows = 200, len(answer.prediction_ids)
            request.version = answer.version
            environ[ROWS] = request.rows
            start_response("200 OK", [*_JSON, ("Content-Length", str(len(body)))])
            return [body]

        deferred = Deferred(future, finish)
        deferred.at_end(lambda: self._end(request))
        return deferred

    def _end(self, request: _Request) -> None:
        """Count a request, and give its place to another."""
        if request.room is not None:
            self._gate.leave(request.room)
        seconds = time.perf_counter() - request.began
        self._metrics.answered(seconds, request.status, request.rows, request.version)


@dataclass
class _Request:
    """What is to be counted of a request; `room` is what it holds of the gate's."""

    began: float = field(default_factory=time.perf_counter)
    room: int | None = None
    status: int = 500
    rows: int = 0
    version: str = ""


def _refusal(error: Exception, form: Form) -> Response:
    if isinstance(error, (FlywheelError, HTTPException)):
        return refuse(error, form)
    return confess(error, form)


def read_body(environ: Environ, limit: int) -> bytes:
    """Read a request's body. Raises RequestEntityTooLarge beyond `limit` bytes."""
    body: bytes = get_input_stream(environ, max_content_length=limit).read()
    if len(body) >= limit and get_content_length(environ) is None:  # Werkzeug cuts it there without a word
        raise RequestEntityTooLarge()
    return body
