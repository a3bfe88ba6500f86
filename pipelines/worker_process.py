"""The master's handles on its workers: one process, the slot it fills, the generation they make up.

Nothing here blocks: the master's loop selects on `status_fd` and calls `hear` and `reap`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .worker_channel import VARIABLE

_FIRST_BACKOFF = 0.25
_LONGEST_BACKOFF = 30.0
_HEALTHY_AFTER = 10.0

State = Literal["starting", "prepared", "told", "serving"]


class WorkerProcess:
    """One started worker.

    `state` only moves forward: starting, prepared, told (to go), serving. `stopping` and `exit_code` are on top of it.
    `deadline` is the monotonic time after which the worker is killed, None when it has all the time it wants.
    """

    def __init__(
        self, command: Sequence[str], pass_fds: Sequence[int], deadline: float, drain_seconds: float
    ) -> None:
        control_read, self._control = os.pipe()
        self.status_fd, status_write = os.pipe()
        os.set_blocking(self.status_fd, False)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                pass_fds=(*pass_fds, control_read, status_write),
                # requests and workers are what runs in parallel; more threads per prediction only get in their way
                env={
                    "OMP_NUM_THREADS": "1",
                    **os.environ,
                    VARIABLE: f"{control_read},{status_write},{drain_seconds:g}",
                },
            )
        except OSError:
            os.close(self._control)
            os.close(self.status_fd)
            raise
        finally:
            os.close(control_read)
            os.close(status_write)
        self.pid = self._process.pid
        self.state: State = "starting"
        self.stopping = False
        self.killed_for: str | None = None
        self.error: str | None = None
        self.exit_code: int | None = None
        self.deadline: float | None = deadline
        self.silent = False  # it closed its end: nothing more will be heard
        self._heard = b""

    def hear(self) -> None:
        """Take in what the worker has said so far."""
        if self.silent:
            return
        with suppress(BlockingIOError):
            while data := os.read(self.status_fd, 65536):
                self._heard += data
            self.silent = True
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._understand(line.decode())

    def _understand(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in ("prepared", "serving"):
            self.state = "prepared" if word == "prepared" else "serving"
            if not self.stopping:
                self.deadline = None
        elif word == "failed":
            self.error = str(json.loads(rest)["error"])

    def go(self, deadline: float) -> None:
        """Tell a prepared worker to be serving before `deadline` (monotonic); the second time does nothing."""
        if self.state == "prepared" and not self.stopping:
            self.state = "told"
            self.deadline = deadline
            with suppress(BrokenPipeError):
                os.write(self._control, b"go\n")

    def stop(self, deadline: float) -> None:
        """Ask the worker to drain and exit before `deadline` (monotonic); the second time does nothing."""
        if not self.stopping and self.exit_code is None:
            self.stopping = True
            self.deadline = deadline
            self._process.send_signal(signal.SIGTERM)

    def kill(self, reason: str) -> None:
        """End the worker now; `reason` becomes its error."""
        self.killed_for = reason
        self.deadline = None
        self._process.kill()

    def reap(self) -> bool:
        """Return whether the process has ended; its last words are heard first and its pipes are closed."""
        if self.exit_code is not None:
            return True
        code = self._process.poll()
        if code is None:
            return False
        self.hear()
        self.exit_code = code
        self.silent = True
        os.close(self.status_fd)
        os.close(self._control)
        return True

    def last_words(self) -> str:
        """Say why an ended worker ended."""
        if self.error:
            return self.error
        if self.killed_for:
            return self.killed_for
        code = self.exit_code
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"worker process {self.pid} ended with {how} while {self.state}; its log says more"


@dataclass
class Slot:
    """One worker's place in a generation: who is in it, and when (monotonic) it may be filled again."""

    index: int
    worker: WorkerProcess | None = None
    started: float = 0.0
    losses: int = 0
    not_before: float = 0.0

    def empty(self, now: float) -> None:
        """Take out a worker that ended; each loss in a row doubles the pause before the next one."""
        worker, self.worker = self.worker, None
        healthy = worker is not None and worker.state == "serving" and now - self.started > _HEALTHY_AFTER
        self.losses = 0 if healthy else self.losses + 1
        self.not_before = now + min(_FIRST_BACKOFF * 2.0 ** min(self.losses, 10), _LONGEST_BACKOFF)


@dataclass
class Generation:
    """The workers of one configuration. `config_path` is a copy that later edits of the file do not touch."""

    number: int
    digest: str
    version: str
    config_path: Path
    slots: list[Slot] = field(default_factory=list)

    @property
    def workers(self) -> list[WorkerProcess]:
        """The processes that have not ended."""
        return [slot.worker for slot in self.slots if slot.worker and slot.worker.exit_code is None]

    @property
    def lost(self) -> list[tuple[Slot, WorkerProcess]]:
        """The processes that have ended and still stand in their slot."""
        return [(s, s.worker) for s in self.slots if s.worker and s.worker.exit_code is not None]

    def all_in(self, *states: str) -> bool:
        """Whether every slot holds a living worker in one of these states."""
        return len(self.workers) == len(self.slots) and all(w.state in states for w in self.workers)
