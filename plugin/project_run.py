"""One MLflow project run, bounded in time, with its output kept."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .context import log_tail
from .runners.processes import descendants_with, end_processes

_log = logging.getLogger(__name__)
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class ProjectOutcome:
    """How a project run ended; `log_tail` are the last lines of its output."""

    status: Literal["FINISHED", "FAILED", "KILLED"]
    log_tail: str


def run_project(
    uri: str,
    parameters: Mapping[str, str],
    *,
    run_id: str,
    experiment_id: str,
    environment: Mapping[str, str],
    log_file: Path,
    timeout: float,
    entry_point: str = "main",
) -> ProjectOutcome:
    """Run a project's entry point in this interpreter's environment, as the MLflow run `run_id`, and wait for it.

    The run has its final status when this returns: KILLED when the project was ended after `timeout` seconds. This
    process's own output goes to `log_file` meanwhile, so it is for a process that does one thing at a time.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import ExecutionException, MlflowException

    log_file.parent.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    watch = threading.Timer(timeout, _end_project, (run_id, ended))
    watch.daemon = True
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
            watch.cancel()
    if ended.is_set():
        status = "KILLED"
    if status != "FINISHED":
        MlflowClient().set_terminated(run_id, status)
    return ProjectOutcome(status, log_tail(log_file))


def _end_project(run_id: str, ended: threading.Event) -> None:
    """End the processes of a project run: MLflow tells each of them the run's id."""
    ended.set()
    end_processes(descendants_with("MLFLOW_RUN_ID", run_id), _GRACE_SECONDS)


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
