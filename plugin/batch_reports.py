"""Batch runs on their way into MLflow: told when they begin and when they end, and later while MLflow is away.

A run never waits for MLflow. What it was told is in the records, so that a run that was killed, or a daemon that was,
goes on with the MLflow run that it has.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mlflow_flywheel.monitors.batch_run import (
    BatchOutcome,
    DataPlace,
    StartedBatch,
    begin_batch_run,
    end_batch_run,
)
from mlflow_flywheel.pipelines.config import BatchConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, NotFound

from .batch_jobs import job_file
from .batch_progress import RunFolder, RunProgress
from .batch_runs import SCHEDULE
from .context import Context
from .prices import Prices
from .record_types import BatchRun, Task
from .series import remember_run

_log = logging.getLogger(__name__)


def report_batch_runs(context: Context) -> None:
    """Tell MLflow what it does not know of runs that began or ended.

    Raises Unavailable while MLflow is away, and BadInput for what it will not take; other runs are told all the same.
    """
    refused = None
    for run in context.records.unreported_batch_runs():
        try:
            _report(context, run)
        except BadInput as error:
            refused = refused or error
    if refused is not None:
        raise refused


def _report(context: Context, run: BatchRun) -> None:
    from mlflow import MlflowClient

    task = context.records.task(run.task_id)
    folder = RunFolder.of(context.home, run.deployment, run.job_id)
    if run.run_id is None and _may_be_idle(run, task, folder):
        if task.status == "done":
            _settle(context, run, folder)
        return
    client = MlflowClient(context.home.tracking_uri)
    started = _started(run, task)
    parent, run_id = None, run.run_id
    if run_id is None:
        parent, run_id = begin_batch_run(client, started)
        context.records.update_batch_run(run.task_id, run_id=run_id)
        _remember_parent(context, run.deployment, parent)
    if task.status not in ("done", "failed"):
        return
    try:
        end_batch_run(client, started, run_id, _outcome(context, run, task, folder), parent)
    except NotFound as error:
        _log.warning("%s", error.message)
    _settle(context, run, folder)


def _may_be_idle(run: BatchRun, task: Task, folder: RunFolder) -> bool:
    """Tell whether a scheduled run found nothing new, or is so young that it may: of those MLflow would be full."""
    if run.trigger != SCHEDULE or task.status == "failed":
        return False
    if task.status == "done":
        return (task.result or {}).get("files") == 0
    return (folder.read() or RunProgress()).files == 0


def _settle(context: Context, run: BatchRun, folder: RunFolder) -> None:
    """Record that MLflow has all that it shall have."""
    context.records.update_batch_run(run.task_id, reported=True)
    folder.remove()


def _outcome(context: Context, run: BatchRun, task: Task, folder: RunFolder) -> BatchOutcome:
    result = dict(task.result or {})
    file = job_file(context, run.deployment, run.job_id)
    config = load_config(BatchConfig, file) if file.exists() else None
    newest = result.get("newest_event")
    return BatchOutcome(
        ended=task.finished or task.created,
        as_of=datetime.fromisoformat(newest) if newest else task.created,
        metrics=_metrics(result, folder.read() or RunProgress()),
        failure=task.error,
        places=[] if config is None else _places(config, result),
        watermark=result.get("watermark"),
        log=folder.log if folder.log.exists() else None,
    )


def _metrics(result: Mapping[str, Any], progress: RunProgress) -> dict[str, float]:
    """Return what a run did: by its result, or by how far it came when it failed."""
    cpu_seconds = float(result.get("cpu_seconds", progress.cpu_seconds))
    return {
        "rows_in": float(result.get("rows_in", progress.rows)),
        "rows_out": float(result.get("rows_out", progress.rows)),
        "rows_rejected": float(result.get("rows_rejected", 0)),
        "seconds": float(result.get("seconds", progress.seconds)),
        "cpu_seconds": cpu_seconds,
        "cost": Prices.of().cost(cpu_seconds),
    }


def _places(config: BatchConfig, result: Mapping[str, Any]) -> list[DataPlace]:
    name, was_read = config.deployment, str(result.get("input_digest") or config.job_id)
    read = DataPlace.at(config.input, f"{name} input", "input", was_read, config.query)
    written = DataPlace.at(config.output, f"{name} output", "output", config.job_id)
    return [
        replace(read, rows=result.get("rows_in"), columns=result.get("columns_in") or {}),
        replace(written, rows=result.get("rows_out"), columns=result.get("columns_out") or {}),
    ]


def _started(run: BatchRun, task: Task) -> StartedBatch:
    return StartedBatch(
        model=run.model_name,
        deployment=run.deployment,
        version=run.version,
        model_id=run.model_id,
        job_id=run.job_id,
        trigger=run.trigger,
        span=run.span,
        started=task.started or task.created,
    )


def _remember_parent(context: Context, deployment: str, parent: str) -> None:
    try:
        remember_run(context.records, context.records.deployment(deployment), parent)
    except NotFound:  # deleted meanwhile; its runs are told to their end
        return
