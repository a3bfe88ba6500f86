"""What the daemon's tasks do, and who puts them in the queue when it is time.

Functions that take a home's path run in warm child processes or in the scheduler's threads: they are named by text or
pickled, so they live here and not in the daemon, which is a `__main__`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.schedule import Job
from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.spool import spooled_models

from .answer_counting import count_failed_run, count_run
from .batch_jobs import BatchRequest, batch_job, job_id_of
from .batch_progress import RunFolder, score_batch, score_run
from .batch_runs import PREDICT, SCHEDULE, trigger_of
from .context import Context
from .home import Home
from .record_types import BatchRun, Task, TaskKind
from .records import Records
from .spec import BatchSpec
from .spec_reading import parse_spec
from .warm_process import CallFailed, WarmProcess

_log = logging.getLogger(__name__)
_BATCH_SECONDS = 24 * 3600.0
_LOOP_SECONDS = 2 * 3600.0
_MAINTENANCE = "*/2 * * * *"
_HERE = "mlflow_flywheel.plugin.tasks"
Handlers = Mapping[TaskKind, Callable[[Task], Mapping[str, Any]]]


def batch_handlers(context: Context, batch: WarmProcess) -> Handlers:
    """Return how batch runs are done: in the warm process, and, but for the rows of a predict call, told to MLflow."""

    def run(task: Task) -> Mapping[str, Any]:
        if task.requested_by == PREDICT:
            job = batch_job(context, task).model_dump(mode="json")
            predicted: dict[str, Any] = batch.call(score_batch, job, timeout=_BATCH_SECONDS)
            return predicted
        begun, config = begin_run(context, task)
        folder = RunFolder.of(context.home, begun.deployment, begun.job_id)
        try:
            answer: dict[str, Any] = batch.call(
                score_run, config.model_dump(mode="json"), str(folder.path), timeout=_BATCH_SECONDS
            )
        except CallFailed:
            count_failed_run(context, begun)
            raise
        count_run(context, begun, answer)
        if config.job_id == begun.job_id:
            return answer
        return {**answer, "resumed": config.job_id, "more_follows": _take_the_rest(context, task, config)}

    return {"batch_run": run}


def _take_the_rest(context: Context, task: Task, config: BatchConfig) -> bool:
    """Ask for a run over what came since the job was planned that a run has gone on with, if there may be any."""
    from mlflow_flywheel.pipelines.batch.resuming import more_waits

    if not config.incremental or not more_waits(config):
        return False
    key = f"batch:after:{task.id}"
    context.records.enqueue("batch_run", task.subject, task.payload, task.requested_by, key)
    return True


def begin_run(context: Context, task: Task) -> tuple[BatchRun, BatchConfig]:
    """Record that a task's run begins and return what it does; also of one that cannot, so that MLflow hears why."""
    record = context.records.deployment(task.subject)
    request = BatchRequest.of(task.payload)
    run = BatchRun(
        task_id=task.id,
        deployment=record.name,
        model_name=record.model_name,
        version=record.version,
        model_id=record.model_id,
        job_id=job_id_of(record, task.id),
        trigger=trigger_of(task, request.is_backfill),
        span=request.span,
    )
    try:
        config = batch_job(context, task)
        model = config.model
        run = replace(run, model_name=model.name, version=model.version, model_id=model.model_id)
    finally:
        context.records.add_batch_run(run)
    return run, config


def loop_handlers(context: Context, loop: WarmProcess) -> Handlers:
    """Return how monitors and retrainings are done: one at a time in the warm process, so one per model too."""
    path = str(context.home.path)

    def monitor(task: Task) -> Mapping[str, Any]:
        answer: dict[str, Any] = loop.call(
            monitor_model, path, task.subject, _as_of(task), timeout=_LOOP_SECONDS
        )
        return answer

    def retrain(task: Task) -> Mapping[str, Any]:
        action_id = action_of(context.records, task)
        reason = str(task.payload.get("reason") or f"asked for by {task.requested_by}")
        policy = PolicySpec.parse(context.records.policy(task.subject))
        seconds = _LOOP_SECONDS + policy.retrain_timeout.total_seconds()
        try:
            answer: dict[str, Any] = loop.call(
                retrain_model, path, task.subject, reason, _as_of(task), action_id, timeout=seconds
            )
        except FlywheelError as error:
            if not loop.stopped:
                outcome = {"status": "failed", "reason": error.message, "promoted": False}
                context.records.update_action(action_id, "failed", outcome)
            raise
        return answer

    return {"monitor": monitor, "retrain": retrain}


def action_of(records: Records, task: Task) -> int:
    """Return the action that a retraining belongs to; a person's request becomes one."""
    action_id = task.payload.get("action_id")
    if action_id is not None:
        return int(action_id)
    reason = str(task.payload.get("reason") or f"asked for by {task.requested_by}")
    evidence = {"requested_by": task.requested_by}
    return records.add_action(
        task.subject,
        "retrain",
        reason,
        evidence,
        datetime.fromisoformat(_as_of(task)),
        f"retrain:task:{task.id}",
    )


def _as_of(task: Task) -> str:
    """Return the loop's "now" for a task: given, or when it was asked for."""
    return str(task.payload.get("as_of") or task.created.isoformat())


def monitor_model(home_path: str, model: str, as_of: str) -> dict[str, Any]:
    """Run a model's monitors and let its policy decide."""
    from .loop import run_monitors

    home, records = _opened(home_path)
    result: dict[str, Any] = run_monitors(home, records, model, datetime.fromisoformat(as_of))
    return result


def retrain_model(home_path: str, model: str, reason: str, as_of: str, action_id: int) -> dict[str, Any]:
    """Retrain a model."""
    from .retraining import run_retraining

    home, records = _opened(home_path)
    return run_retraining(home, records, model, reason, datetime.fromisoformat(as_of), action_id)


@lru_cache(maxsize=1)
def _opened(home_path: str) -> tuple[Home, Records]:
    import mlflow

    home = Home(home_path)
    if home.tracking_uri is None:
        raise BadInput(f"home {home_path!r} is bound to no MLflow server yet; create a deployment first")
    mlflow.set_tracking_uri(home.tracking_uri)
    mlflow.set_registry_uri(home.tracking_uri)
    return home, Records(home.database_url)


def recurring_jobs(context: Context) -> list[Job]:
    """Return what is done by the clock: monitors per model, runs per batch deployment, care for the tables."""
    path = str(context.home.path)
    jobs = [Job("maintenance", _MAINTENANCE, f"{_HERE}:maintain_tables", (path,))]
    deployments = context.records.deployments()
    for model in sorted({d.model_name for d in deployments if d.version}):
        policy = PolicySpec.parse(context.records.policy(model))
        target = f"{_HERE}:enqueue_monitor"
        jobs.append(Job(f"monitor {model}", policy.monitor_schedule, target, (path, model), policy.timezone))
    for deployment in deployments:
        spec = parse_spec(deployment.config)
        if isinstance(spec, BatchSpec) and spec.schedule is not None:
            target, arguments = f"{_HERE}:enqueue_batch", (path, deployment.name)
            jobs.append(Job(f"batch {deployment.name}", spec.schedule, target, arguments, spec.timezone))
    return jobs


def enqueue_monitor(home_path: str, model: str) -> None:
    """Ask for a model's monitors as of now; once, however often this minute is announced."""
    now = datetime.now(timezone.utc)
    with _records(home_path) as records:
        records.enqueue(
            "monitor", model, {"as_of": now.isoformat()}, "schedule", f"monitor:{model}:{now:%Y-%m-%dT%H:%M}"
        )


def enqueue_batch(home_path: str, deployment: str) -> None:
    """Ask for a batch deployment's run over its new input; once, however often this minute is announced.

    While one that was asked for before has not begun there is no second: runs that take long do not pile up.
    """
    now = datetime.now(timezone.utc)
    with _records(home_path) as records:
        created = records.deployment(deployment).created  # a namesake that was deleted has its own runs
        key = f"batch:{deployment}:{created.isoformat()}:{now:%Y-%m-%dT%H:%M}"
        waiting = records.tasks(kind="batch_run", subject=deployment, status="queued")
        if all(task.requested_by != SCHEDULE for task in waiting):  # else that run takes what this one would
            records.enqueue("batch_run", deployment, BatchRequest().payload(), SCHEDULE, key)


def maintain_tables(home_path: str) -> None:
    """Compact and clean the inference tables where it is due."""
    home = Home(home_path)
    with _records(home_path) as records:
        models = {d.model_name for d in records.deployments()} | set(spooled_models(home.spool))
    for model in sorted(models):
        table = InferenceTable.open(home.tables, model)
        if table.exists and table.maintain():
            _log.info("the inference table of %s was compacted", model)


@contextmanager
def _records(home_path: str) -> Iterator[Records]:
    records = Records(Home(home_path).database_url)
    try:
        yield records
    finally:
        records.close()
