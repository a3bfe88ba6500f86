"""WSGI middleware that gives every request an id, and writes a line about it where that is asked for."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any

import orjson

from .deferred import until_end
from .wsgi import Environ, Headers, StartResponse, WSGIApp

HEADER = "X-Request-ID"
# What the app and what stands around it leave for each other in the WSGI environment.
REQUEST_ID = "flywheel.request_id"
ROWS = "flywheel.rows"
_SANE = re.compile(r"[!-~]{1,128}")
_LONGEST_PATH = 512  # with it a line is well below what a pipe takes at once, so lines of workers never mix


class RequestLog:
    """Takes over the caller's id of a request when it is sane, else makes one; the answer carries it.

    `write` gets one line of JSON per request, None for no log: never a body, a header, a query string or a token.
    """

    def __init__(self, app: WSGIApp, write: Callable[[bytes], object] | None = None) -> None:
        self._app = app
        self._write = write

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request_id = environ.get("HTTP_X_REQUEST_ID", "")
        if not _SANE.fullmatch(request_id):
            request_id = os.urandom(16).hex()
        environ[REQUEST_ID] = request_id

        def start(status: str, headers: Headers, *rest: Any) -> Any:
            return start_response(status, [*headers, (HEADER, request_id)], *rest)

        return self._app(environ, start) if self._write is None else self._logged(self._write, environ, start)

    def _logged(
        self, write: Callable[[bytes], object], environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        answered: dict[str, Any] = {"status": 500, "bytes": None}
        began = time.perf_counter()

        def start(status: str, headers: Headers, *rest: Any) -> Any:
            answered["status"] = int(status[:3])
            answered["bytes"] = next(
                (int(v) for name, v in headers if name.lower() == "content-length"), None
            )
            return start_response(status, headers, *rest)

        def end() -> None:
            write(_line(environ, answered, time.perf_counter() - began))

        return until_end(self._app, environ, start, end)


def _line(environ: Environ, answered: dict[str, Any], seconds: float) -> bytes:
    return orjson.dumps(
        {
            "time": datetime.now(timezone.utc),
            "method": environ["REQUEST_METHOD"][:32],
            "path": _printable(environ["PATH_INFO"][:_LONGEST_PATH]),
            "status": answered["status"],
            "duration_ms": round(1000 * seconds, 3),
            "rows": environ.get(ROWS),
            "bytes": answered["bytes"],
            "request_id": environ[REQUEST_ID],
            "remote": environ.get("REMOTE_ADDR"),
        },
        option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z,
    )


def _printable(path: str) -> str:
    return path if path.isascii() else path.encode("ascii", "backslashreplace").decode()
