"""What the records hold, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

DeploymentStatus = Literal["starting", "ready", "failed", "deleting"]
TaskKind = Literal["batch_run", "monitor", "retrain", "rollout"]
TaskStatus = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True)
class DeploymentRecord:
    """A deployment's desired state, and how far it has come."""

    name: str
    model_uri: str
    model_name: str
    mode: str
    config: Mapping[str, str]
    flavor: str
    status: DeploymentStatus
    version: str
    model_id: str | None
    url: str | None
    message: str
    run_id: str | None
    created: datetime
    updated: datetime


@dataclass(frozen=True)
class Task:
    """One piece of work for the daemon, with its outcome; `worker` claimed it, the `attempts`-th time."""

    id: int
    kind: TaskKind
    subject: str
    payload: Mapping[str, Any]
    status: TaskStatus
    requested_by: str
    key: str | None
    worker: str | None
    attempts: int
    result: Mapping[str, Any] | None
    error: str | None
    created: datetime
    started: datetime | None
    finished: datetime | None


@dataclass(frozen=True)
class BatchRun:
    """A run of a batch deployment: a task that scores input, of which MLflow is told.

    `trigger` is schedule, hand or back-fill, `span` what a back-fill is over; `reported` says that MLflow knows its end.
    """

    task_id: int
    deployment: str
    model_name: str
    version: str
    model_id: str | None
    job_id: str
    trigger: str
    span: str | None = None
    run_id: str | None = None
    reported: bool = False


@dataclass(frozen=True)
class VerdictRecord:
    """A monitor's answer about a window, and the MLflow run that holds its evidence."""

    id: int
    model: str
    monitor: str
    window_start: datetime
    window_end: datetime
    verdict: str
    summary: Mapping[str, Any]
    run_id: str | None
    created: datetime


@dataclass(frozen=True)
class ActionRecord:
    """What the loop (or a person) did about a model, and why."""

    id: int
    model: str
    kind: str
    reason: str
    evidence: Mapping[str, Any]
    as_of: datetime
    key: str
    status: str
    result: Mapping[str, Any] | None
    run_id: str | None
    created: datetime
    updated: datetime


@dataclass(frozen=True)
class NewAction:
    """An action that is about to be recorded; with `task`, work for the daemon is queued along with it."""

    kind: str
    reason: str
    evidence: Mapping[str, Any]
    key: str
    status: str = "done"
    task: TaskKind | None = None


@dataclass(frozen=True)
class Pause:
    """A loop that may start nothing: since when, who asked for it, and why."""

    model: str
    since: datetime
    requested_by: str
    reason: str

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"by {self.requested_by} since {self.since:%Y-%m-%d %H:%M}{why}"
