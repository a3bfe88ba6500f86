"""What stands around the app of a web service, and in which order.

From the outside in:

1. `RequestLog`: every request has an id and a line, also the one that is refused further in.
2. `Tracing`: its span times all that follows.
3. `SecurityHeaders`: on every answer, also on a refusal.
4. `Cors`: a browser sends its preflight without the token, so it is answered before anybody asks for one.
5. `Guard`: nothing of the app runs for a caller without the token.
6. the app.

`Drain` goes around all of it: a request counts as inside until the last of them is done.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlflow_flywheel.pipelines.config import WebConfig
from mlflow_flywheel.pipelines.tokens import read_token

from .guard import Guard
from .headers import Cors, SecurityHeaders
from .request_log import RequestLog
from .tracing import Tracing
from .wsgi import WSGIApp

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def compose(app: WSGIApp, config: WebConfig, tracer: Tracer | None = None) -> WSGIApp:
    """Put around an app what its configuration asks for. Raises BadInput when the token cannot be read."""
    if config.auth_token_file is not None:
        app = Guard(app, read_token(config.auth_token_file))
    if config.cors_origins:
        app = Cors(app, config.cors_origins)
    app = SecurityHeaders(app)
    if tracer is not None:
        app = Tracing(app, tracer)
    return RequestLog(app, _to_standard_output if config.access_log else None)


def _to_standard_output(line: bytes) -> None:
    os.write(1, line)  # in one piece: other workers write there too
