"""What is remembered of the runs of batch deployments beside their tasks: who runs, and whether MLflow knows."""

from __future__ import annotations

from datetime import datetime

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

    def batch_runs(self, deployment: str, *, asked_since: datetime, limit: int = 100) -> list[BatchRun]:
        """Return the newest runs of a deployment first."""
        task = select(TaskRow.id).where(TaskRow.id == BatchRunRow.task_id, TaskRow.created >= asked_since)
        query = select(BatchRunRow).where(BatchRunRow.deployment == deployment, task.exists())
        with self._database.read() as session:
            found = session.scalars(query.order_by(BatchRunRow.task_id.desc()).limit(limit))
            return [batch_run_of(row) for row in found]

    def unreported_batch_runs(self) -> list[BatchRun]:
        """Return the runs of which MLflow is not told all, oldest first."""
        query = select(BatchRunRow).where(BatchRunRow.reported.is_(False)).order_by(BatchRunRow.task_id)
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
