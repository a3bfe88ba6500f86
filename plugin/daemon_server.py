"""What the daemon listens for, on loopback: Prometheus, which reads `/metrics`, and the webhooks of MLflow.

The port is chosen once and kept, so that both find it again.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mlflow_flywheel.pipelines.prometheus import CONTENT_TYPE

from . import webhook_inbox
from .context import Context
from .home import Home
from .metrics import metrics_of
from .webhook_inbox import MOST_BYTES, Refused, WebhookInbox

_HOST = "127.0.0.1"
_METRICS = "/metrics"
_IDLE_SECONDS = 10.0


class DaemonServer:
    """Answers from threads of its own until it is closed."""

    def __init__(self, context: Context, inbox: WebhookInbox) -> None:
        class Handler(_Handler):
            pass

        Handler.context, Handler.inbox = context, inbox
        self._server = _listening(context.home, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="server", daemon=True)
        self._thread.start()

    @property
    def metrics_url(self) -> str:
        return f"http://{_HOST}:{self._server.server_port}{_METRICS}"

    @property
    def webhook_url(self) -> str:
        return f"http://{_HOST}:{self._server.server_port}{webhook_inbox.PATH}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "flywheel", ""
    timeout = _IDLE_SECONDS  # nobody holds a thread by saying nothing

    context: Context
    inbox: WebhookInbox

    def do_GET(self) -> None:
        if self._path == _METRICS:
            self._say(200, CONTENT_TYPE, metrics_of(self.context))
        else:
            self._tell(404, f"only {_METRICS} is here to be read")

    def do_POST(self) -> None:
        try:
            if self._path != webhook_inbox.PATH:
                raise Refused(404, f"only {webhook_inbox.PATH} takes anything")
            self.inbox.take(self.headers, self._body())
        except Refused as refused:
            self._tell(refused.status, str(refused))
        else:
            self._tell(200, "heard")

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _body(self) -> bytes:
        """Read the body; one that is too large, or does not say how large it is, is not even looked at."""
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "the request does not say how long its body is")
        if len(length) > 9 or int(length) > MOST_BYTES:
            raise Refused(413, f"the body has more than {MOST_BYTES} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(400, "the body ends too early")
        return body

    def _tell(self, status: int, message: str) -> None:
        self._say(status, "application/json", json.dumps({"message": message}).encode())

    def _say(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass  # a line per scrape would bury the daemon's log


def _listening(home: Home, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """Listen on the home's port, or on another one when it has none yet or somebody took it."""
    file = home.path / "metrics.port"
    try:
        kept = int(file.read_text())
    except (FileNotFoundError, ValueError):
        kept = 0
    try:
        server = ThreadingHTTPServer((_HOST, kept), handler)
    except OSError:
        server = ThreadingHTTPServer((_HOST, 0), handler)
    file.write_text(str(server.server_port))
    return server
