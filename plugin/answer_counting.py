"""Who answered how often, and failed how often: read from what web and stream workers count, and told by batch runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from mlflow_flywheel.pipelines.errors import NotFound
from mlflow_flywheel.pipelines.generation_status import read_status
from mlflow_flywheel.pipelines.stream.stats import read_each
from mlflow_flywheel.pipelines.times import EPOCH, utc_now
from mlflow_flywheel.pipelines.web.metrics import answers_by_version, answers_of_challenger

from .answer_records import Counter, Server
from .batch_progress import RunFolder
from .batch_runs import PREDICT
from .context import Context
from .record_types import BatchRun, DeploymentRecord
from .trials import challenger_in_force


class AnswerMeter:
    """Reads every web and stream deployment when it is called, and records what is new.

    What a web service counted between its last reading and its restart is lost.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cleaned: datetime = EPOCH

    def read(self) -> None:
        """Read all of them now."""
        context, now = self._context, utc_now()
        counters = [
            counter
            for deployment in context.records.deployments()
            for counter in _counters(context, deployment)
        ]
        context.records.add_answers(counters, now)
        if now.date() != self._cleaned.date():
            context.records.forget_old_answers(now)
            self._cleaned = now


def count_run(context: Context, run: BatchRun, result: Mapping[str, Any]) -> None:
    """Record what a batch run did; the same run again is counted once."""
    _add_run(context, run, int(result["rows_out"]), int(result.get("rows_failed", 0)))


def count_failed_run(context: Context, run: BatchRun) -> None:
    """Record a batch run that failed, if its model is to blame: as many rows have no answer as the last run answered."""
    progress = RunFolder.of(context.home, run.deployment, run.job_id).read()
    if progress is None or not progress.model_failed:
        return
    done = context.records.tasks(kind="batch_run", subject=run.deployment, status="done")
    usual = (int((task.result or {}).get("rows_out", 0)) for task in done if task.requested_by != PREDICT)
    _add_run(context, run, 0, next((rows for rows in usual if rows), 1))


def _add_run(context: Context, run: BatchRun, answered: int, failed: int) -> None:
    try:
        deployed = context.records.deployment(run.deployment).created
    except NotFound:  # deleted meanwhile
        return
    server = Server(run.deployment, deployed, run.model_name, run.version)
    counter = Counter(f"batch run {run.task_id}", run.job_id, server, answered, failed)
    context.records.add_answers([counter], utc_now())


def _counters(context: Context, deployment: DeploymentRecord) -> Iterator[Counter]:
    file = context.home.status_file(deployment.name)
    whose = f"{deployment.name} of {deployment.created.isoformat()}"
    if deployment.mode == "web":
        status = read_status(file)
        master = str(status.pid) if status is not None else ""
        for version, counts in answers_by_version(str(file)).items():
            yield Counter(f"{whose}: {version}", master, _server(deployment, version), *counts)
        tried = challenger_in_force(context, deployment.name)
        if tried is not None:
            counts = answers_of_challenger(str(file))
            yield Counter(f"{whose}: challenger", master, _server(deployment, tried), *counts)
    elif deployment.mode == "stream":
        for name, stats in read_each(file).items():
            if stats.version:
                turn = f"{stats.version} after {stats.before_version[0]}"
                yield Counter(f"{whose}: {name}", turn, _server(deployment, stats.version), *stats.of_version)


def _server(deployment: DeploymentRecord, version: str) -> Server:
    return Server(deployment.name, deployment.created, deployment.model_name, version)
