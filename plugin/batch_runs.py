"""The runs of batch deployments as the daemon begins them and as people see them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .batch_progress import RunFolder
from .context import Context
from .record_types import BatchRun, DeploymentRecord, Task

PREDICT = "predict"
"""Who asks for the rows of one predict call: that is no run of the deployment."""
SCHEDULE = "schedule"
_LOOKED_AT = 20


def trigger_of(task: Task, backfill: bool) -> str:
    """Return why there is a run: schedule, hand or back-fill."""
    if backfill:
        return "back-fill"
    return SCHEDULE if task.requested_by == SCHEDULE else "hand"


def runs_view(context: Context, record: DeploymentRecord) -> dict[str, Any]:
    """Return the run of a deployment that is under way (`run`) and the one that ended last (`last_run`), or None."""
    shown: dict[str, Any] = {"run": None, "last_run": None}
    for run in context.records.batch_runs(record.name, asked_since=record.created, limit=_LOOKED_AT):
        task = context.records.task(run.task_id)
        if task.status == "running":
            shown["run"] = run_view(context, run, task)
        elif task.status in ("done", "failed"):
            return shown | {"last_run": run_view(context, run, task)}
    return shown


def run_view(context: Context, run: BatchRun, task: Task) -> dict[str, Any]:
    """Return one run as a JSON-ready dict."""
    shown = {
        "job_id": run.job_id,
        "status": task.status,
        "trigger": run.trigger,
        "span": run.span,
        "version": run.version,
        "started": task.started and task.started.isoformat(),
        "attempts": task.attempts,
        "run_id": run.run_id,
    }
    if task.status == "running":
        progress = RunFolder.of(context.home, run.deployment, run.job_id).read()
        return shown | ({} if progress is None else asdict(progress))
    result = task.result or {}
    shown |= {"finished": task.finished and task.finished.isoformat(), "error": task.error}
    counted = ("rows_in", "rows_out", "rows_rejected", "files", "files_rejected", "seconds", "cpu_seconds")
    return shown | {name: result[name] for name in counted if name in result}
