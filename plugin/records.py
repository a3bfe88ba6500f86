"""The control plane's memory: deployments, tasks, verdicts, actions and policies in one SQL database.

SQLite (WAL, many processes may write) or PostgreSQL. Frozen dataclasses go out, never ORM objects. Times are UTC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlflow_flywheel.pipelines.errors import AlreadyExists, BadInput, NotFound, Unavailable, nearest

from .answer_records import AnswerRecords
from .batch_records import BatchRecords
from .champion_records import ChampionRecords
from .database import Database, utc_now
from .loop_records import LoopRecords, insert_once
from .record_rows import DeploymentRow, Row, TaskRow, deployment_of, task_of
from .record_types import (
    ActionRecord,
    DeploymentRecord,
    DeploymentStatus,
    Task,
    TaskKind,
    TaskStatus,
    VerdictRecord,
)
from .run_records import FINISHED, RunRecords, record_end
from .usage_records import UsageRecords

__all__ = ["ActionRecord", "DeploymentRecord", "Records", "Task", "VerdictRecord"]
_MAX_ATTEMPTS = 3
_DEPLOYMENT_FIELDS = frozenset(
    (
        "model_uri",
        "model_name",
        "mode",
        "config",
        "flavor",
        "status",
        "version",
        "model_id",
        "url",
        "message",
        "run_id",
    )
)


class Records(LoopRecords, ChampionRecords, BatchRecords, UsageRecords, RunRecords, AnswerRecords):
    """All reads and writes of the control plane; safe to share between threads, and between processes by URL."""

    def __init__(self, database_url: str) -> None:
        super().__init__(Database(database_url, Row.metadata))

    def close(self) -> None:
        """Give the database connections back."""
        self._database.close()

    def deployments(
        self, *, model_name: str | None = None, mode: str | None = None
    ) -> list[DeploymentRecord]:
        """Return the deployments by name, of one model or mode when asked."""
        query = select(DeploymentRow).order_by(DeploymentRow.name)
        if model_name is not None:
            query = query.where(DeploymentRow.model_name == model_name)
        if mode is not None:
            query = query.where(DeploymentRow.mode == mode)
        with self._database.read() as session:
            return [deployment_of(row) for row in session.scalars(query)]

    def deployment(self, name: str) -> DeploymentRecord:
        """Return one deployment; raises NotFound that names the nearest."""
        with self._database.read() as session:
            return deployment_of(_find_deployment(session, name))

    def add_deployment(
        self,
        name: str,
        *,
        model_uri: str,
        model_name: str,
        mode: str,
        config: Mapping[str, str],
        flavor: str,
        version: str = "",
        model_id: str | None = None,
        status: DeploymentStatus = "starting",
        message: str = "",
    ) -> DeploymentRecord:
        """Record a new deployment; raises AlreadyExists when the name is taken."""
        moment = utc_now()
        row = DeploymentRow(
            name=name,
            model_uri=model_uri,
            model_name=model_name,
            mode=mode,
            config=dict(config),
            flavor=flavor,
            status=status,
            version=version,
            model_id=model_id,
            message=message,
            created=moment,
            updated=moment,
        )
        try:
            with self._database.write() as session:
                session.add(row)
                session.flush()
                return deployment_of(row)
        except IntegrityError:
            raise AlreadyExists(
                f"deployment {name!r} exists already; update it, delete it first, or choose another name"
            ) from None

    def update_deployment(self, name: str, **fields: Any) -> DeploymentRecord:
        """Change fields of a deployment by name; raises NotFound."""
        unknown = fields.keys() - _DEPLOYMENT_FIELDS
        if unknown:
            raise BadInput(
                f"deployments have no field {sorted(unknown)}; known: {sorted(_DEPLOYMENT_FIELDS)}"
            )
        with self._database.write() as session:
            row = _find_deployment(session, name)
            for field, value in fields.items():
                setattr(row, field, dict(value) if field == "config" else value)
            row.updated = utc_now()
            session.flush()
            return deployment_of(row)

    def delete_deployment(self, name: str, run_status: str = FINISHED) -> None:
        """Forget a deployment, whose run in MLflow ends so; raises NotFound."""
        with self._database.write() as session:
            row = _find_deployment(session, name)
            if row.run_id is not None:
                record_end(session, row.run_id, run_status)
            session.delete(row)

    def enqueue(
        self,
        kind: TaskKind,
        subject: str,
        payload: Mapping[str, Any],
        requested_by: str,
        key: str | None = None,
    ) -> int:
        """Queue work for the daemon and return its id; the same key gives the task that was queued first."""
        row = TaskRow(
            kind=kind,
            subject=subject,
            payload=dict(payload),
            status="queued",
            requested_by=requested_by,
            key=key,
            attempts=0,
            created=utc_now(),
        )
        return insert_once(self._database, row)

    def claim(self, kinds: Sequence[TaskKind], worker: str) -> Task | None:
        """Take the oldest queued task of these kinds, or None when there is nothing to do.

        A task is given to one worker only, and of one kind and subject only one task runs at a time.
        """
        busy = select(TaskRow.kind, TaskRow.subject).where(TaskRow.status == "running").subquery()
        query = (
            select(TaskRow)
            .outerjoin(busy, (busy.c.kind == TaskRow.kind) & (busy.c.subject == TaskRow.subject))
            .where(TaskRow.status == "queued", TaskRow.kind.in_(kinds), busy.c.kind.is_(None))
            .order_by(TaskRow.id)
            .limit(1)
            .with_for_update(skip_locked=True, of=TaskRow)
        )
        try:
            with self._database.write() as session:
                row = session.scalars(query).first()
                if row is None:
                    return None
                row.status, row.worker, row.started = "running", worker, utc_now()
                row.attempts += 1
                session.flush()
                return task_of(row)
        except IntegrityError:
            return None  # PostgreSQL only: another worker took a task of the same subject in this moment

    def finish(self, task_id: int, result: Mapping[str, Any]) -> None:
        """Mark a running task done; raises NotFound when it is not running any more."""
        self._end(task_id, status="done", result=dict(result))

    def fail(self, task_id: int, error: str) -> None:
        """Mark a running task failed; raises NotFound when it is not running any more."""
        self._end(task_id, status="failed", error=error)

    def task(self, task_id: int) -> Task:
        """Return one task; raises NotFound."""
        with self._database.read() as session:
            row = session.get(TaskRow, task_id)
            if row is None:
                raise NotFound(f"task {task_id} does not exist")
            return task_of(row)

    def tasks(
        self, *, kind: TaskKind | None = None, subject: str | None = None, status: TaskStatus | None = None,
        limit: int = 100,
    ) -> list[Task]:  # fmt: skip
        """Return the newest tasks first."""
        query = select(TaskRow).order_by(TaskRow.id.desc()).limit(limit)
        for column, value in ((TaskRow.kind, kind), (TaskRow.subject, subject), (TaskRow.status, status)):
            if value is not None:
                query = query.where(column == value)
        with self._database.read() as session:
            return [task_of(row) for row in session.scalars(query)]

    def wait(self, task_id: int, timeout: float) -> Task:
        """Return the task as soon as it is done or failed; raises Unavailable after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while True:
            task = self.task(task_id)
            if task.status in ("done", "failed"):
                return task
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"task {task_id} ({task.kind} of {task.subject!r}) is still {task.status} after {timeout:g} s; "
                    "it goes on in the daemon ('flywheel status', 'flywheel logs daemon')"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def requeue_abandoned(self, worker_alive: Callable[[str], bool]) -> list[int]:
        """Queue again what dead workers had claimed, and return those ids.

        A task that was abandoned three times fails: it is likely what kills its worker.
        """
        again = []
        with self._database.write() as session:
            for row in session.scalars(select(TaskRow).where(TaskRow.status == "running")):
                if row.worker is not None and worker_alive(row.worker):
                    continue
                if row.attempts >= _MAX_ATTEMPTS:
                    row.status, row.finished = "failed", utc_now()
                    row.error = (
                        f"its worker died in each of {row.attempts} attempts (see 'flywheel logs daemon')"
                    )
                else:
                    row.status, row.worker, row.started = "queued", None, None
                    again.append(row.id)
        return again

    def _end(self, task_id: int, *, status: TaskStatus, **fields: Any) -> None:
        with self._database.write() as session:
            row = session.get(TaskRow, task_id)
            if row is None or row.status != "running":
                state = "does not exist" if row is None else f"is {row.status}, not running"
                raise NotFound(f"task {task_id} {state}; it cannot be marked {status}")
            row.status, row.finished = status, utc_now()
            for field, value in fields.items():
                setattr(row, field, value)


def _find_deployment(session: Session, name: str) -> DeploymentRow:
    row = session.get(DeploymentRow, name)
    if row is None:
        known = session.scalars(select(DeploymentRow.name)).all()
        hint = nearest(name, known) or "; 'flywheel status' lists the deployments"
        raise NotFound(f"deployment {name!r} does not exist{hint}")
    return row
