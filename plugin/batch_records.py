"""What is remembered of the runs of batch deployments beside their tasks: who runs, and whether MLflow knows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select

from mlflow_flywheel.pipelines.errors import NotFound

from .database import Database
from .record_rows import BatchRunRow, TaskRow, batch_run_of
from .record_types import BatchRun


class BatchRecords:
    """The part of `Records` that is about batch runs."""

    _database: Database

    def add_batch_run(self, run: BatchRun) -> None:
        """Record a run; one that was recorded before stays as it is."""
        with self._database.write() as session:
            if session.get(BatchRunRow, run.task_id) is None:
                session.add(BatchRunRow(**vars(run)))

    def batch_run(self, task_id: int) -> BatchRun | None:
        """Return the run of a task; None before it began."""
        with self._database.read() as session:
            row = session.get(BatchRunRow, task_id)
            return None if row is None else batch_run_of(row)

    def batch_runs(
        self, deployment: str | None = None, *, unreported: bool = False, asked_since: datetime | None = None,
        limit: int = 100,
    ) -> list[BatchRun]:  # fmt: skip
        """Return runs: of which MLflow is not told all, oldest first, or the newest first."""
        order: Any = BatchRunRow.task_id if unreported else BatchRunRow.task_id.desc()
        query = select(BatchRunRow).order_by(order).limit(limit)
        if deployment is not None:
            query = query.where(BatchRunRow.deployment == deployment)
        if unreported:
            query = query.where(BatchRunRow.reported.is_(False))
        if asked_since is not None:
            task = select(TaskRow.id).where(TaskRow.id == BatchRunRow.task_id, TaskRow.created >= asked_since)
            query = query.where(task.exists())
        with self._database.read() as session:
            return [batch_run_of(row) for row in session.scalars(query)]

    def update_batch_run(self, task_id: int, *, run_id: str | None = None, reported: bool = False) -> None:
        """Record what MLflow was told. Raises NotFound."""
        with self._database.write() as session:
            row = session.get(BatchRunRow, task_id)
            if row is None:
                raise NotFound(f"task {task_id} is no batch run that began")
            row.run_id = run_id or row.run_id
            row.reported = reported or row.reported
