"""The worker's end of the line to its master process (`generations.py`).

The master hands every worker two pipes and names them in `FLYWHEEL_WORKER_CHANNEL`. The worker says `prepared`, waits
for `go`, says `serving`, or says `failed` with the reason. A worker that was started by hand has no such variable:
then every call is a no-op and `wait_go` returns at once.

The worker's main thread owns SIGTERM: before `go` the default action is right (there is nothing to drain), after it
the worker finishes what it has begun and exits 0. When the master dies, the worker gets the same SIGTERM from here.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time

from .errors import FlywheelError

VARIABLE = "FLYWHEEL_WORKER_CHANNEL"
DRAIN_SECONDS = 30.0
_LONGEST_ERROR = 8000


class WorkerChannel:
    """What a worker tells its master and hears from it. Use one per process, from `from_environment`."""

    def __init__(
        self, control: int | None = None, status: int | None = None, drain_seconds: float = DRAIN_SECONDS
    ) -> None:
        self._status = status
        self._drain_seconds = drain_seconds
        self._go = threading.Event()
        self._orphaned = False
        if control is None:
            self._go.set()
        else:
            threading.Thread(target=self._listen, args=(control,), name="master-channel", daemon=True).start()

    @classmethod
    def from_environment(cls) -> WorkerChannel:
        """Take the channel that the master gave this process, or a silent one when there is no master."""
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return cls()
        first, second, drain_seconds = text.split(",")
        control, status = int(first), int(second)
        os.set_inheritable(control, False)
        os.set_inheritable(status, False)
        return cls(control, status, float(drain_seconds))

    def prepared(self) -> None:
        """Say that the model is loaded and scored its input example: this worker can take over at once."""
        self._say("prepared")

    def wait_go(self) -> bool:
        """Block until the master says `go`; False when the master died instead: leave without serving."""
        self._go.wait()
        return not self._orphaned

    def serving(self) -> None:
        """Say that requests or messages are being taken."""
        self._say("serving")

    def failed(self, error: BaseException) -> None:
        """Say why this worker gives up; exit with a non-zero code afterwards."""
        text = error.message if isinstance(error, FlywheelError) else f"{type(error).__name__}: {error}"
        self._say("failed " + json.dumps({"error": text[-_LONGEST_ERROR:]}))

    def _say(self, line: str) -> None:
        if self._status is None:
            return
        data = line.encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._status, data) :]
        except BrokenPipeError:
            self._status = None  # the master is gone; the listener ends this process

    def _listen(self, control: int) -> None:
        while data := os.read(control, 64):
            if b"go" in data:
                self._go.set()
        self._orphaned = True
        self._go.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._drain_seconds)
        os.kill(os.getpid(), signal.SIGKILL)
