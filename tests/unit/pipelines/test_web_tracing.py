"""Spans of requests: by whom they were asked, what came of them, and nothing at all when nobody asked for traces."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from werkzeug.test import Client

from mlflow_flywheel.pipelines.web.request_log import ROWS, RequestLog
from mlflow_flywheel.pipelines.web.tracing import Tracing, is_wanted, open_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def spans_of(status: str, path: str, **headers: str) -> list[ReadableSpan]:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assert get_current_span().get_span_context().is_valid, "what the app does is part of the span"
        environ[ROWS] = 2
        start_response(status, [])
        return [b""]

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    client = Client(RequestLog(Tracing(app, provider.get_tracer("test"))))
    sent = {"X-Request-ID": "mine", "Authorization": "Bearer hidden", **headers}
    client.post(path, headers=sent, buffered=True)
    return list(kept.get_finished_spans())


def test_a_span_is_part_of_the_callers_trace() -> None:
    (span,) = spans_of("200 OK", "/invocations?q=hidden", traceparent=f"00-{TRACE}-{PARENT}-01")
    assert (span.name, span.kind) == ("POST /invocations", SpanKind.SERVER)
    assert span.parent is not None and span.context is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": "/invocations",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "flywheel.request_id": "mine",
        "flywheel.rows": 2,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_without_a_sane_parent_a_trace_begins_and_failures_are_marked() -> None:
    (span,) = spans_of("500 INTERNAL SERVER ERROR", "/invocations", traceparent="00-junk")
    assert span.parent is None and span.status.status_code is StatusCode.ERROR
    (unknown,) = spans_of("404 NOT FOUND", "/wp-admin.php")
    assert (unknown.name, unknown.status.status_code) == ("POST", StatusCode.UNSET)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted


def test_nothing_is_traced_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as parts:
        assert open_tracer("late-web", "1", parts) is None


def test_missing_packages_are_a_warning_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with ExitStack() as parts, caplog.at_level(logging.WARNING):
        assert open_tracer("late-web", "1", parts) is None
    assert 'pip install "mlflow-flywheel[otel]"' in caplog.text


def test_spans_reach_a_collector_at_the_latest_when_the_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [b""]

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        with ExitStack() as parts:
            tracer = open_tracer("late-web", "7", parts)
            assert tracer is not None
            Client(Tracing(app, tracer)).post("/invocations", buffered=True)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    ((path, request),) = received
    assert path == "/v1/traces"
    resource = {each.key: each.value.string_value for each in request.resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["service.version"]) == ("late-web", "7")
    assert [s.name for s in request.resource_spans[0].scope_spans[0].spans] == ["POST /invocations"]
