"""The tables of the record database; nothing outside `records` sees them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, cast

from sqlalchemy import JSON, Index, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .database import Utc
from .record_types import (
    ActionRecord,
    BatchRun,
    DeploymentRecord,
    DeploymentStatus,
    Pause,
    Task,
    TaskKind,
    TaskStatus,
    VerdictRecord,
)


class Row(DeclarativeBase):
    """Base of the tables: a shared PostgreSQL database may hold MLflow's own, so ours are prefixed."""

    metadata = MetaData()
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: Utc(), dict[str, Any]: JSON(), str: Text()}


class DeploymentRow(Row):
    __tablename__ = "flywheel_deployments"

    name: Mapped[str] = mapped_column(primary_key=True)
    model_uri: Mapped[str]
    model_name: Mapped[str] = mapped_column(index=True)
    mode: Mapped[str]
    config: Mapped[dict[str, Any]]
    flavor: Mapped[str]
    status: Mapped[str]
    version: Mapped[str]
    model_id: Mapped[str | None]
    url: Mapped[str | None]
    message: Mapped[str]
    run_id: Mapped[str | None]
    created: Mapped[datetime]
    updated: Mapped[datetime]


class TaskRow(Row):
    __tablename__ = "flywheel_tasks"
    __table_args__ = (
        Index("flywheel_tasks_queue", "status", "id"),
        Index(
            "flywheel_tasks_one_runs",
            "kind",
            "subject",
            unique=True,
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str]
    subject: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str]
    requested_by: Mapped[str]
    key: Mapped[str | None] = mapped_column(unique=True)
    worker: Mapped[str | None]
    attempts: Mapped[int]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]


class BatchRunRow(Row):
    __tablename__ = "flywheel_batch_runs"

    task_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    deployment: Mapped[str] = mapped_column(index=True)
    model_name: Mapped[str]
    version: Mapped[str]
    model_id: Mapped[str | None]
    job_id: Mapped[str]
    trigger: Mapped[str]
    span: Mapped[str | None]
    run_id: Mapped[str | None]
    reported: Mapped[bool] = mapped_column(index=True)


class VerdictRow(Row):
    __tablename__ = "flywheel_verdicts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(index=True)
    monitor: Mapped[str]
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    verdict: Mapped[str]
    summary: Mapped[dict[str, Any]]
    run_id: Mapped[str | None]
    created: Mapped[datetime]


class ActionRow(Row):
    __tablename__ = "flywheel_actions"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    reason: Mapped[str]
    evidence: Mapped[dict[str, Any]]
    as_of: Mapped[datetime]
    key: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str]
    result: Mapped[dict[str, Any] | None]
    run_id: Mapped[str | None]
    created: Mapped[datetime]
    updated: Mapped[datetime]


class ToldRow(Row):
    """An action that a place was told of."""

    __tablename__ = "flywheel_told"

    place: Mapped[str] = mapped_column(primary_key=True)
    action_id: Mapped[int] = mapped_column(primary_key=True)


class PolicyRow(Row):
    __tablename__ = "flywheel_policies"

    model: Mapped[str] = mapped_column(primary_key=True)
    policy: Mapped[dict[str, Any]]
    updated: Mapped[datetime]


class PolicyStateRow(Row):
    __tablename__ = "flywheel_policy_state"

    model: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[dict[str, Any]]
    updated: Mapped[datetime]


class PauseRow(Row):
    __tablename__ = "flywheel_pauses"

    model: Mapped[str] = mapped_column(primary_key=True)
    requested_by: Mapped[str]
    reason: Mapped[str]
    since: Mapped[datetime]


def deployment_of(row: DeploymentRow) -> DeploymentRecord:
    """Return the row as a plain value."""
    return DeploymentRecord(
        name=row.name,
        model_uri=row.model_uri,
        model_name=row.model_name,
        mode=row.mode,
        config={str(key): str(value) for key, value in row.config.items()},
        flavor=row.flavor,
        status=cast(DeploymentStatus, row.status),
        version=row.version,
        model_id=row.model_id,
        url=row.url,
        message=row.message,
        run_id=row.run_id,
        created=row.created,
        updated=row.updated,
    )


def task_of(row: TaskRow) -> Task:
    """Return the row as a plain value."""
    return Task(
        id=row.id,
        kind=cast(TaskKind, row.kind),
        subject=row.subject,
        payload=dict(row.payload),
        status=cast(TaskStatus, row.status),
        requested_by=row.requested_by,
        key=row.key,
        worker=row.worker,
        attempts=row.attempts,
        result=row.result,
        error=row.error,
        created=row.created,
        started=row.started,
        finished=row.finished,
    )


def batch_run_of(row: BatchRunRow) -> BatchRun:
    """Return the row as a plain value."""
    return BatchRun(
        task_id=row.task_id,
        deployment=row.deployment,
        model_name=row.model_name,
        version=row.version,
        model_id=row.model_id,
        job_id=row.job_id,
        trigger=row.trigger,
        span=row.span,
        run_id=row.run_id,
        reported=row.reported,
    )


def verdict_of(row: VerdictRow) -> VerdictRecord:
    """Return the row as a plain value."""
    return VerdictRecord(
        id=row.id,
        model=row.model,
        monitor=row.monitor,
        window_start=row.window_start,
        window_end=row.window_end,
        verdict=row.verdict,
        summary=dict(row.summary),
        run_id=row.run_id,
        created=row.created,
    )


def action_of(row: ActionRow) -> ActionRecord:
    """Return the row as a plain value."""
    return ActionRecord(
        id=row.id,
        model=row.model,
        kind=row.kind,
        reason=row.reason,
        evidence=dict(row.evidence),
        as_of=row.as_of,
        key=row.key,
        status=row.status,
        result=row.result,
        run_id=row.run_id,
        created=row.created,
        updated=row.updated,
    )


def pause_of(row: PauseRow) -> Pause:
    """Return the row as a plain value."""
    return Pause(row.model, row.since, row.requested_by, row.reason)
