"""What every operation of the control plane works on: one home with its records and its runner."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow_flywheel.pipelines.errors import Unavailable

from .home import Home
from .record_types import Task
from .records import Records
from .runners.base import DAEMON, ProcessSpec, Runner, process_environment, python_module
from .runners.supervisor import SupervisorRunner

_DAEMON_STOP_SECONDS = 30
_LOOK_SECONDS = 2.0
_ABSENT_SECONDS = 10.0


@dataclass(frozen=True)
class Context:
    """One home at work."""

    home: Home
    records: Records
    runner: Runner

    @classmethod
    def open(cls, home: Home) -> Context:
        """Open a home, making it when it is new."""
        home.create()
        return cls(home, Records(home.database_url), SupervisorRunner(home))

    @property
    def tracking_uri(self) -> str:
        """The MLflow server that this home is bound to; binds a new home to the one that MLflow would use now.

        Raises BadInput when the caller's MLflow is set to another server.
        """
        return self.home.bind(_chosen_tracking_uri(self.home))

    def process(
        self, name: str, command: tuple[str, ...], stop_seconds: int, *, asks_mlflow: bool = True
    ) -> ProcessSpec:
        """Describe one of this home's processes, with the environment that all of them get.

        One that never asks MLflow is the same process when the home is bound to a server, or to another one.
        """
        environment = process_environment(self.home.tracking_uri if asks_mlflow else None, self.home.path)
        return ProcessSpec(name, command, self.home.log_file(name), environment, stop_seconds)

    def ensure_daemon(self) -> None:
        """Keep the daemon running from now on; idempotent."""
        command = python_module("mlflow_flywheel.plugin.daemon", "--home", str(self.home.path))
        self.runner.start(self.process(DAEMON, command, _DAEMON_STOP_SECONDS))

    def wait_for_task(
        self,
        task_id: int,
        timeout: float,
        meanwhile: Callable[[], None] = lambda: None,
        look_seconds: float = _LOOK_SECONDS,
    ) -> Task:
        """Return the task as soon as it is done or failed; `meanwhile` is called every so often.

        Raises Unavailable after `timeout` seconds, or when the daemon that should do it does not stay up.
        """
        deadline, absent = time.monotonic() + timeout, 0
        while True:
            try:
                return self.records.wait(task_id, min(look_seconds, max(0.0, deadline - time.monotonic())))
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
            meanwhile()
            daemon = next((s for s in self.runner.status() if s.name == DAEMON), None)
            absent = 0 if daemon is not None and daemon.alive else absent + 1
            if absent * look_seconds >= _ABSENT_SECONDS:
                raise Unavailable(
                    f"task {task_id} waits for the daemon, which is {daemon.state if daemon else 'not started'}; its "
                    f"last log lines:\n{log_tail(self.home.log_file(DAEMON))}"
                )

    @contextmanager
    def changing(self, deployment: str) -> Iterator[None]:
        """Hold the deployment alone: a roll-over, an update and a deletion wait for each other."""
        locks = self.home.create().path / "locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        with open(locks / deployment, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def log_tail(file: Path, lines: int = 12) -> str:
    """Return the last lines of a log, or an empty string when there is none."""
    try:
        with open(file, "rb") as log:
            log.seek(max(0, file.stat().st_size - 16_384))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def _chosen_tracking_uri(home: Home) -> str:
    """Return what the caller chose, by environment or in Python; else what the home remembers; else the default."""
    if "mlflow" in sys.modules:
        import mlflow  # waits for another thread that is just importing it

        if mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]
            return str(mlflow.get_tracking_uri())
    chosen = os.environ.get("MLFLOW_TRACKING_URI") or home.tracking_uri
    if chosen:
        return chosen
    import mlflow as loaded

    return str(loaded.get_tracking_uri())
