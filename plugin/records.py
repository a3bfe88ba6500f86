"""The control plane's memory: deployments, tasks, verdicts, actions and policies in one SQL database.

SQLite (WAL, many processes may write) or PostgreSQL. Frozen dataclasses go out, never ORM objects. Times are UTC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlflow_flywheel.pipelines.errors import AlreadyExists, BadInput, NotFound, Unavailable, nearest

from .database import Database, utc_now
from .record_rows import (
    ActionRow,
    DeploymentRow,
    PolicyRow,
    PolicyStateRow,
    Row,
    TaskRow,
    VerdictRow,
    action_of,
    deployment_of,
    task_of,
    verdict_of,
)
from .record_types import (
    ActionRecord,
    DeploymentRecord,
    DeploymentStatus,
    Task,
    TaskKind,
    TaskStatus,
    VerdictRecord,
)

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


class Records:
    """All reads and writes of the control plane; safe to share between threads, and between processes by URL."""

    def __init__(self, database_url: str) -> None:
        self._database = Database(database_url, Row.metadata)

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

    def delete_deployment(self, name: str) -> None:
        """Forget a deployment; raises NotFound."""
        with self._database.write() as session:
            session.delete(_find_deployment(session, name))

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
        return self._insert_once(row)

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

    def add_verdict(
        self,
        model: str,
        monitor: str,
        window_start: datetime,
        window_end: datetime,
        verdict: str,
        summary: Mapping[str, Any],
        run_id: str | None = None,
    ) -> int:
        """Record a monitor's verdict and return its id."""
        row = VerdictRow(
            model=model,
            monitor=monitor,
            window_start=window_start,
            window_end=window_end,
            verdict=verdict,
            summary=dict(summary),
            run_id=run_id,
            created=utc_now(),
        )
        with self._database.write() as session:
            session.add(row)
            session.flush()
            return row.id

    def verdicts(self, model: str | None = None, limit: int = 100) -> list[VerdictRecord]:
        """Return the newest verdicts first."""
        query = select(VerdictRow).order_by(VerdictRow.id.desc()).limit(limit)
        if model is not None:
            query = query.where(VerdictRow.model == model)
        with self._database.read() as session:
            return [verdict_of(row) for row in session.scalars(query)]

    def add_action(
        self, model: str, kind: str, reason: str, evidence: Mapping[str, Any], as_of: datetime, key: str,
        status: str = "started",
    ) -> int:  # fmt: skip
        """Record an action and return its id; the same key gives the action that was recorded first."""
        moment = utc_now()
        row = ActionRow(
            model=model,
            kind=kind,
            reason=reason,
            evidence=dict(evidence),
            as_of=as_of,
            key=key,
            status=status,
            created=moment,
            updated=moment,
        )
        return self._insert_once(row)

    def update_action(
        self, action_id: int, status: str, result: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> ActionRecord:
        """Record how an action went on; raises NotFound."""
        with self._database.write() as session:
            row = session.get(ActionRow, action_id)
            if row is None:
                raise NotFound(f"action {action_id} does not exist")
            row.status, row.updated = status, utc_now()
            row.result = dict(result) if result is not None else row.result
            row.run_id = run_id if run_id is not None else row.run_id
            session.flush()
            return action_of(row)

    def actions(self, model: str | None = None, limit: int = 100) -> list[ActionRecord]:
        """Return the newest actions first."""
        query = select(ActionRow).order_by(ActionRow.id.desc()).limit(limit)
        if model is not None:
            query = query.where(ActionRow.model == model)
        with self._database.read() as session:
            return [action_of(row) for row in session.scalars(query)]

    def policy(self, model: str) -> dict[str, Any]:
        """Return the model's policy as it was set; empty when there is none."""
        with self._database.read() as session:
            row = session.get(PolicyRow, model)
            return dict(row.policy) if row is not None else {}

    def policies(self) -> dict[str, dict[str, Any]]:
        """Return every policy by model name."""
        with self._database.read() as session:
            return {row.model: dict(row.policy) for row in session.scalars(select(PolicyRow))}

    def set_policy(self, model: str, policy: Mapping[str, Any]) -> None:
        """Replace the model's policy; an empty one removes it."""
        with self._database.write() as session:
            if policy:
                session.merge(PolicyRow(model=model, policy=dict(policy), updated=utc_now()))
            else:
                session.execute(delete(PolicyRow).where(PolicyRow.model == model))

    def policy_state(self, model: str) -> dict[str, Any]:
        """Return what the policy remembers between decisions; empty at first."""
        with self._database.read() as session:
            row = session.get(PolicyStateRow, model)
            return dict(row.state) if row is not None else {}

    def set_policy_state(self, model: str, state: Mapping[str, Any]) -> None:
        """Replace what the policy remembers."""
        with self._database.write() as session:
            session.merge(PolicyStateRow(model=model, state=dict(state), updated=utc_now()))

    def _end(self, task_id: int, *, status: TaskStatus, **fields: Any) -> None:
        with self._database.write() as session:
            row = session.get(TaskRow, task_id)
            if row is None or row.status != "running":
                state = "does not exist" if row is None else f"is {row.status}, not running"
                raise NotFound(f"task {task_id} {state}; it cannot be marked {status}")
            row.status, row.finished = status, utc_now()
            for field, value in fields.items():
                setattr(row, field, value)

    def _insert_once(self, row: TaskRow | ActionRow) -> int:
        table = type(row)
        same = select(table.id).where(table.key == row.key) if row.key is not None else None
        try:
            with self._database.write() as session:
                known = session.scalar(same) if same is not None else None
                if known is not None:
                    return known
                session.add(row)
                session.flush()
                return row.id
        except IntegrityError:  # PostgreSQL: another writer was first with this key
            with self._database.read() as session:
                known = session.scalar(same) if same is not None else None
            if known is None:
                raise
            return known


def _find_deployment(session: Session, name: str) -> DeploymentRow:
    row = session.get(DeploymentRow, name)
    if row is None:
        known = session.scalars(select(DeploymentRow.name)).all()
        hint = nearest(name, known) or "; 'flywheel status' lists the deployments"
        raise NotFound(f"deployment {name!r} does not exist{hint}")
    return row
