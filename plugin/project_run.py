"""One MLflow project run, bounded in time and memory, with its output kept."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from mlflow_flywheel.pipelines.own_code import EnvironmentManager

from .context import log_tail
from .runners.processes import end_processes, processes_with

# Which run a process belongs to: what fetches a project and makes its environment is bounded like the project itself.
_MARK = "FLYWHEEL_PROJECT_RUN"
_log = logging.getLogger(__name__)
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Launch:
    """What is run: a project's folder or URI, its entry point with parameters, in which environment."""

    uri: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    entry_point: str = "main"
    env_manager: EnvironmentManager = "local"


@dataclass(frozen=True)
class ProjectOutcome:
    """How a project run ended; `log_tail` are the last lines of its output.

    `reason` is what it was killed for, or why it could not be started.
    """

    status: Literal["FINISHED", "FAILED", "KILLED"]
    log_tail: str
    reason: str = ""


def run_project(
    prepare: Callable[[], Launch],
    *,
    run_id: str,
    experiment_id: str,
    environment: Mapping[str, str],
    log_file: Path,
    timeout: float,
    memory_bytes: float = math.inf,
) -> ProjectOutcome:
    """Run a project's entry point as the MLflow run `run_id`, and wait for it; nothing that it started outlives it.

    `prepare` may fetch the project; the bounds hold for it too. The run has its final status when this returns: KILLED
    when it was ended after `timeout` seconds, or because its processes had more than `memory_bytes` together. This
    process's own output goes to `log_file` meanwhile, so it is for a process that does one thing at a time.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import ExecutionException

    log_file.parent.mkdir(parents=True, exist_ok=True)
    watch = _Watch(run_id, timeout, memory_bytes)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
    reason = ""
    with _output_to(log_file), _environment({**environment, _MARK: run_id}):
        watch.start()
        try:
            launch = prepare()
            mlflow.projects.run(  # type: ignore[no-untyped-call]
                launch.uri,
                launch.entry_point,
                parameters=dict(launch.parameters),
                env_manager=launch.env_manager,
                experiment_id=experiment_id,
                run_id=run_id,
                storage_dir=str(log_file.parent),
            )
        except ExecutionException as error:  # its command failed, and has said why
            _log.warning("project run %s: %s", run_id, error)
            status = "FAILED"
        except Exception as error:  # noqa: BLE001 - fetching and making environments raise what git, pip and uv do
            _log.warning("project run %s cannot be started", run_id, exc_info=True)
            status, reason = "FAILED", getattr(error, "message", "") or f"{type(error).__name__}: {error}"
        finally:
            watch.stop()
    if watch.bound:
        status, reason = "KILLED", watch.bound
    if status != "FINISHED":
        MlflowClient().set_terminated(run_id, status)
    return ProjectOutcome(status, log_tail(log_file), reason)


def end_project(run_id: str) -> None:
    """End every process of a project run, whoever their parent is now."""
    end_processes(processes_with({_MARK: run_id}), _GRACE_SECONDS)


class _Watch(threading.Thread):
    """Ends the processes of a project run that takes too long or too much: they carry its mark."""

    def __init__(self, run_id: str, timeout: float, memory_bytes: float) -> None:
        super().__init__(name="project-watch", daemon=True)
        self._run_id = run_id
        self._timeout = timeout
        self._memory_bytes = memory_bytes
        self._over = threading.Event()
        self.bound = ""

    def run(self) -> None:
        deadline = time.monotonic() + self._timeout
        left = self._timeout
        while not self._over.wait(max(0.0, min(_LOOK_SECONDS, left))):
            left = deadline - time.monotonic()
            if left <= 0:
                self.bound = self.bound or f"after {self._timeout:g} s"
            elif self._memory_bytes < math.inf and (used := self._used()) > self._memory_bytes:
                limit = f"{self._memory_bytes / 1e9:g} GB"
                self.bound = self.bound or f"at {used / 1e9:.3g} GB of memory, more than {limit}"
            if self.bound:  # whatever comes next is ended as well, until nobody waits for it any more
                end_project(self._run_id)
                left = _LOOK_SECONDS

    def stop(self) -> None:
        """Watch no more, and end what the project left running."""
        self._over.set()
        self.join()
        end_project(self._run_id)

    def _used(self) -> float:
        used = 0.0
        for process in processes_with({_MARK: self._run_id}):
            with suppress(psutil.Error):
                used += process.memory_info().rss
        return used


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what this process and its children write to a file, below Python: children inherit descriptors only."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), kept, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(file)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
