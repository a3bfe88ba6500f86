"""One MLflow project run, bounded in time and memory, with its output kept."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from .context import log_tail
from .runners.processes import descendants_with, end_processes

_log = logging.getLogger(__name__)
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class ProjectOutcome:
    """How a project run ended; `log_tail` are the last lines of its output, `bound` is what it was killed for."""

    status: Literal["FINISHED", "FAILED", "KILLED"]
    log_tail: str
    bound: str = ""


def run_project(
    uri: str,
    parameters: Mapping[str, str],
    *,
    run_id: str,
    experiment_id: str,
    environment: Mapping[str, str],
    log_file: Path,
    timeout: float,
    memory_bytes: float = math.inf,
    entry_point: str = "main",
) -> ProjectOutcome:
    """Run a project's entry point in this interpreter's environment, as the MLflow run `run_id`, and wait for it.

    The run has its final status when this returns: KILLED when the project was ended after `timeout` seconds, or
    because its processes had more than `memory_bytes` together. This process's own output goes to `log_file` meanwhile,
    so it is for a process that does one thing at a time.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import ExecutionException, MlflowException

    log_file.parent.mkdir(parents=True, exist_ok=True)
    watch = _Watch(run_id, timeout, memory_bytes)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
    with _output_to(log_file), _environment(environment):
        watch.start()
        try:
            mlflow.projects.run(  # type: ignore[no-untyped-call]
                uri,
                entry_point,
                parameters=dict(parameters),
                env_manager="local",
                experiment_id=experiment_id,
                run_id=run_id,
                storage_dir=str(log_file.parent),
            )
        except (ExecutionException, MlflowException) as error:
            _log.warning("project run %s: %s", run_id, error)
            status = "FAILED"
        finally:
            watch.stop()
    if watch.bound:
        status = "KILLED"
    if status != "FINISHED":
        MlflowClient().set_terminated(run_id, status)
    return ProjectOutcome(status, log_tail(log_file), watch.bound)


class _Watch(threading.Thread):
    """Ends the processes of a project run that takes too long or too much: MLflow tells each of them the run's id."""

    def __init__(self, run_id: str, timeout: float, memory_bytes: float) -> None:
        super().__init__(name="project-watch", daemon=True)
        self._run_id = run_id
        self._timeout = timeout
        self._memory_bytes = memory_bytes
        self._over = threading.Event()
        self.bound = ""

    def run(self) -> None:
        deadline = time.monotonic() + self._timeout
        while not self._over.wait(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                self._end(f"after {self._timeout:g} s")
            elif self._memory_bytes < math.inf and (used := self._used()) > self._memory_bytes:
                self._end(f"at {used / 1e9:.2g} GB of memory, more than {self._memory_bytes / 1e9:g} GB")

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        self.join()

    def _end(self, bound: str) -> None:
        self.bound = bound
        self._over.set()
        end_processes(descendants_with("MLFLOW_RUN_ID", self._run_id), _GRACE_SECONDS)

    def _used(self) -> float:
        used = 0.0
        for process in descendants_with("MLFLOW_RUN_ID", self._run_id):
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
