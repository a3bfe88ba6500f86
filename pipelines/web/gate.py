"""The bounded queue in front of a worker's model."""

from __future__ import annotations

import threading

from mlflow_flywheel.pipelines.errors import Unavailable

_WAITING_BYTES = 64 * 1024 * 1024


class Busy(Unavailable):
    """More requests are waiting than the deployment allows."""

    http_status = 429
    error_code = "RESOURCE_EXHAUSTED"


class Gate:
    """Lets `inside` requests in and `waiting` more wait; the others are told to come back.

    What all of them hold in bodies is bounded too, so that waiting never grows the memory: to 64 MiB, or to `inside`
    bodies of the largest size when that is more.
    """

    def __init__(self, inside: int, waiting: int, max_body_bytes: int = 0) -> None:
        self._lock = threading.Lock()
        self._waiting = waiting
        self._places = inside + waiting
        self._bytes = max(_WAITING_BYTES, inside * max_body_bytes)

    def enter(self, size: int) -> None:
        """Take a place for a body of `size` bytes, until `leave`. Raises Busy when too many wait already."""
        with self._lock:
            if self._places == 0:
                raise Busy(f"{self._waiting} requests are waiting already (max_queue); try again in a second")
            if size > self._bytes:
                raise Busy("the bodies of waiting requests take all the room there is; try again in a second")
            self._places -= 1
            self._bytes -= size

    def leave(self, size: int) -> None:
        """Give back what `enter` took."""
        with self._lock:
            self._places += 1
            self._bytes += size
