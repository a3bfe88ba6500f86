"""How many requests are in the app, how many may wait, and when a leaving worker has answered its last one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from typing import Any

from .deferred import until_end
from .wsgi import Environ, Headers, StartResponse, WSGIApp

_LONGEST_SECONDS = 20.0


class Drain:
    """WSGI middleware that counts requests and, once draining, closes connections after their answer.

    With `shared` it asks one caller in 256 to connect anew at any time: all workers accept on one socket, and whoever is
    quickest when many connect at once may get them all and keep them for as long as the callers live.
    """

    def __init__(self, app: WSGIApp, *, shared: bool = False) -> None:
        self._app = app
        self._close_share = 1 / 256 if shared else 0.0
        self._lock = threading.Lock()
        self._inside = 0
        self._last = time.monotonic()
        self._began: float | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            self._inside += 1
        return until_end(self._app, environ, self._closing(start_response), self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            self._last = time.monotonic()

    def begin(self) -> None:
        """From now on every answer asks its caller to close the connection."""
        self._began = time.monotonic()

    def quiet(self, seconds: float) -> bool:
        """Whether nothing is inside and nothing came for that long; callers that never stop are cut off in the end."""
        now = time.monotonic()
        began = self._began or now
        with self._lock:
            still = self._inside == 0 and now - max(self._last, began) >= seconds
        return still or now - began >= _LONGEST_SECONDS

    def _closing(self, start_response: StartResponse) -> StartResponse:
        if self._began is None and random.random() >= self._close_share:
            return start_response

        def start(status: str, headers: Headers, *rest: Any) -> Any:
            return start_response(status, [*headers, ("Connection", "close")], *rest)

        return start
