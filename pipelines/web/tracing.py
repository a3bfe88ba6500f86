"""A span for each request, sent where the standard OTEL_* variables say: the only import of opentelemetry.

Nothing is imported unless they are set. The variables are those of the process, so of the shell that started the home's
processes ('flywheel up').
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.errors import MissingExtra

from .deferred import until_end
from .request_log import REQUEST_ID, ROWS
from .wsgi import Environ, Headers, StartResponse, WSGIApp

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_log = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTERS = "OTEL_TRACES_EXPORTER"
_END_SECONDS = 3.0
_SENT = {"traceparent": "HTTP_TRACEPARENT", "tracestate": "HTTP_TRACESTATE"}
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether the variables ask for traces; OTEL_TRACES_EXPORTER=none and OTEL_SDK_DISABLED=true do not."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get(_EXPORTERS, "").strip().lower()
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in _ENDPOINTS))


def open_tracer(deployment: str, version: str, parts: ExitStack) -> Tracer | None:
    """Return what makes the spans, or None when no variable asks for them; `parts` sends the last ones and ends it.

    Where the packages are missing, the log says how to install them, and the service works without.
    """
    if not is_wanted(os.environ):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(os.environ.get(_EXPORTERS, "").strip().lower() or "otlp")
    except ImportError:
        _log.warning(
            "requests are not traced: %s", MissingExtra("sending OpenTelemetry traces", "otel").message
        )
        return None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": deployment}
    resource = Resource.create({**named, "service.version": version})
    # of our own, as MLflow has one too, and models may set the global one
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    parts.callback(_end, provider.shutdown)
    return provider.get_tracer("mlflow_flywheel.web")


def _end(shutdown: Callable[[], None]) -> None:
    """Send the last spans, but let no collector that is away hold up a worker that leaves."""
    ending = threading.Thread(target=shutdown, name="last-spans", daemon=True)
    ending.start()
    ending.join(_END_SECONDS)


def _exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        _log.warning("%s=%s is not known here (otlp, console, none); otlp is taken", _EXPORTERS, name)
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol != "http/protobuf":
        _log.warning(
            "traces are sent by http/protobuf, not by %s; the endpoint must take that (usually port 4318)",
            protocol,
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class Tracing:
    """WSGI middleware: a server span per request, in the caller's trace when it sent a `traceparent`."""

    def __init__(self, app: WSGIApp, tracer: Tracer) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, use_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = tracer
        self._server = SpanKind.SERVER
        self._current = use_span
        self._failed = Status(StatusCode.ERROR)
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        sent = {name: environ[key] for name, key in _SENT.items() if key in environ}
        method = environ["REQUEST_METHOD"] if environ["REQUEST_METHOD"] in _KNOWN_METHODS else "HTTP"
        span = self._tracer.start_span(
            method, self._propagator.extract(sent), kind=self._server, attributes=_asked(environ)
        )

        def start(status: str, headers: Headers, *rest: Any) -> Any:
            code = int(status[:3])
            span.set_attribute("http.response.status_code", code)
            if code not in (401, 404):  # paths that nobody serves are as many as there are scanners
                span.update_name(f"{method} {environ['PATH_INFO']}")
            if code >= 500:
                span.set_status(self._failed)
            return start_response(status, headers, *rest)

        def end() -> None:
            if ROWS in environ:
                span.set_attribute("flywheel.rows", environ[ROWS])
            span.end()

        with self._current(span, end_on_exit=False):
            return until_end(self._app, environ, start, end)


def _asked(environ: Environ) -> dict[str, str]:
    attributes = {
        "http.request.method": environ["REQUEST_METHOD"],
        "url.path": environ["PATH_INFO"],
        "url.scheme": environ.get("wsgi.url_scheme", "http"),
        "client.address": environ.get("REMOTE_ADDR"),
        "flywheel.request_id": environ.get(REQUEST_ID),
    }
    return {key: value for key, value in attributes.items() if value}
