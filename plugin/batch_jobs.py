"""Which job a run of a batch deployment is: what is asked for, with what the deployment says, for the data plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow_flywheel.pipelines.config import BatchConfig, ModelRef, load_config
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.times import parse_time

from .context import Context
from .model_files import model_in_force
from .record_types import DeploymentRecord, Task
from .spec import BatchSpec
from .spec_reading import parse_spec

BACKFILL = "backfill"
"""Role of a back-fill's rows in the inference table: monitors and retraining count what was said at its time, once."""


@dataclass(frozen=True)
class BatchRequest:
    """What one run is asked for; the payload of a `batch_run` task.

    Without `input` it is the deployment's own, with what is new in it since its last run. With `start` or `end` it is a
    back-fill: all rows whose time is in that span, whatever was scored before.
    """

    input: str | None = None
    output: str | None = None
    passthrough: tuple[str, ...] | None = None
    start: datetime | None = None
    end: datetime | None = None

    @property
    def is_backfill(self) -> bool:
        return self.start is not None or self.end is not None

    @property
    def span(self) -> str | None:
        """Return the span of a back-fill as text, open where it has no bound; None for other runs."""
        if not self.is_backfill:
            return None
        return "/".join(".." if moment is None else moment.isoformat() for moment in (self.start, self.end))

    def payload(self) -> dict[str, Any]:
        """Return the JSON form."""
        times = {"start": self.start, "end": self.end}
        given = {name: moment.isoformat() for name, moment in times.items() if moment is not None}
        return {"input": self.input, "output": self.output, "passthrough": self.passthrough, **given}

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> BatchRequest:
        """Read the JSON form; an empty payload asks for the deployment's own input."""
        kept = payload.get("passthrough")
        start, end = (parse_time(payload[name]) if payload.get(name) else None for name in ("start", "end"))
        return cls(
            payload.get("input"), payload.get("output"), None if kept is None else tuple(kept), start, end
        )


def batch_job(context: Context, task: Task) -> BatchConfig:
    """Return the job that a `batch_run` task stands for, with the version that is in force when it is first tried.

    It is remembered: a task that is tried again goes on where its first attempt was killed, whatever happened to the
    deployment meanwhile. A task after one that failed goes on with the job of that one where it can. Raises BadInput
    when neither the task nor the deployment says what to score.
    """
    record = context.records.deployment(task.subject)
    spec = parse_spec(record.config)
    if not isinstance(spec, BatchSpec):
        raise BadInput(
            f"deployment {record.name!r} is a {record.mode} deployment; only batch deployments have runs"
        )
    job_id = job_id_of(record, task.id)
    remembered = job_file(context, record.name, job_id)
    if not remembered.exists():
        model, request = model_in_force(context, record), BatchRequest.of(task.payload)
        failed = _failed_job(context, record, task)
        config = batch_config(context, record.name, model, spec, request, failed or job_id)
        if failed is not None and not _can_go_on(config):
            config = batch_config(context, record.name, model, spec, request, job_id)
        config.save(remembered)
    return load_config(BatchConfig, remembered)


def _failed_job(context: Context, record: DeploymentRecord, task: Task) -> str | None:
    """Return the job of the last run that was asked for the same, if that failed."""
    for run in context.records.batch_runs(record.name, asked_since=record.created):
        before = context.records.task(run.task_id)
        file = job_file(context, record.name, run.job_id)
        if before.id >= task.id or before.payload != task.payload or not file.exists():
            continue
        return load_config(BatchConfig, file).job_id if before.status == "failed" else None
    return None


def _can_go_on(config: BatchConfig) -> bool:
    from mlflow_flywheel.pipelines.batch.resuming import can_go_on

    return can_go_on(config)


def batch_config(
    context: Context, name: str, model: ModelRef, spec: BatchSpec, request: BatchRequest, job_id: str
) -> BatchConfig:
    """Return the job of one run; raises BadInput when neither the request nor the spec says what to score."""
    source = request.input or spec.input
    if source is None:
        raise BadInput(
            f"batch deployment {name!r} has no input; set it ('mlflow deployments update -C input=...') or name one: "
            f"'flywheel batch run {name} --input ...'"
        )
    query = spec.query if request.input in (None, spec.input) else None  # of another input all is scored
    backfill = request.is_backfill
    if backfill:
        check_span(name, spec, request)
    new_only = request.input is None and not backfill
    watermark = spec.watermark if new_only else None
    output = request.output or output_of(context, name, spec)
    if request.output is None and (backfill or watermark is not None):
        output = place_of_run(output, "a back-fill" if backfill else f"watermark={watermark}", job_id)
    return BatchConfig(
        deployment=name,
        model=model,
        variant=BACKFILL if backfill else spec.variant,
        tables=context.home.tables,
        state_dir=str(context.home.batch_state(name)),
        job_id=job_id,
        input=source,
        query=query,
        output=output,
        id_column=spec.id_column,
        timestamp_column=spec.timestamp_column,
        passthrough=spec.passthrough if request.passthrough is None else request.passthrough,
        log=spec.log == "all",
        log_exclude=spec.log_exclude,
        log_sample=spec.log_sample,
        on_error=spec.on_error,
        chunk_rows=spec.chunk_rows,
        commit_rows=spec.commit_rows,
        threads=spec.threads,
        incremental=new_only and (watermark is not None or (query is None and not _is_table(source))),
        watermark=watermark,
        start=request.start,
        end=request.end,
    )


def check_span(name: str, spec: BatchSpec, request: BatchRequest) -> None:
    """Raise BadInput for a back-fill that cannot know its rows, or has none."""
    if spec.timestamp_column is None:
        raise BadInput(
            f"batch deployment {name!r} has no timestamp_column, so a back-fill cannot tell which rows lie between two "
            "times; set it ('mlflow deployments update -C timestamp_column=...'), or name files with --input alone"
        )
    if request.start is not None and request.end is not None and request.start >= request.end:
        raise BadInput(f"the span {request.span} is empty; --from must be before --to, which is not included")


def place_of_run(output: str, what: str, job_id: str = "") -> str:
    """Return where one of many runs over the same input writes: in a folder of its own, beside the others' answers.

    A Delta table takes all of them. Raises BadInput for a single file, in which each would replace the last.
    """
    if _is_table(output):
        return output
    if output.endswith(".parquet"):
        raise BadInput(
            f"output {output!r} is one file, in which each run would replace the answers of the last; {what} needs a "
            "folder, or a Delta table (delta:...)"
        )
    return f"{output.rstrip('/')}/run={job_id}"


def job_id_of(record: DeploymentRecord, task_id: int) -> str:
    """Return the job of a task: unlike any of a namesake that was deleted."""
    return f"{record.name}-{record.created:%Y%m%d%H%M%S%f}-{task_id}"


def job_file(context: Context, deployment: str, job_id: str) -> Path:
    """Return the file that remembers what a job was first told."""
    return context.home.batch_state(deployment) / "tasks" / f"{job_id}.json"


def _is_table(place: str) -> bool:
    from mlflow_flywheel.pipelines.batch.inputs import DELTA_PREFIX, is_delta
    from mlflow_flywheel.pipelines.batch.locations import Location

    return place.startswith(DELTA_PREFIX) or is_delta(Location.of(place, "place"))


def batch_folder(context: Context, name: str) -> Path:
    """Return where a deployment keeps its state, and its answers unless it says otherwise."""
    return context.home.batch / name


def output_of(context: Context, name: str, spec: BatchSpec) -> str:
    """Return where a deployment's answers go."""
    return spec.output or str(batch_folder(context, name) / "output")
