"""Batch deployments: no process of their own; the daemon runs their jobs."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.config import BatchConfig, ModelRef, load_config
from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.times import parse_time
from mlflow_flywheel.pipelines.trial import try_model
from mlflow_flywheel.plugin.batch_runs import PREDICT, runs_view
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.model_files import FetchedModel, model_in_force
from mlflow_flywheel.plugin.record_types import DeploymentRecord, Task
from mlflow_flywheel.plugin.spec import BatchSpec
from mlflow_flywheel.plugin.spec_reading import parse_spec

from .base import Answers

if TYPE_CHECKING:
    import pandas as pd

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


class BatchOperations:
    """See ModeOperations."""

    def check(self, context: Context, name: str, spec: BatchSpec) -> None:
        from mlflow_flywheel.pipelines.batch.inputs import (
            DELTA_PREFIX,
            find_inputs,
            is_within,
            searched_folder,
        )
        from mlflow_flywheel.pipelines.batch.locations import Location

        files_of = spec.input if spec.query is None else None
        if spec.query is not None and spec.input is not None:
            from mlflow_flywheel.pipelines.batch.sql_input import check_sql_url

            check_sql_url(spec.input)
        if files_of is not None:
            tables = [file.path for file in find_inputs(files_of) if file.format == "delta"]
            if tables and spec.schedule is not None and spec.watermark is None:
                raise BadInput(
                    f"input {spec.input!r} is a Delta table, and a scheduled run would score all of it every time; name "
                    "a column that only grows with watermark=, give a folder of files, or leave out schedule="
                )
        if spec.watermark is not None:
            place_of_run(_output(context, name, spec), f"watermark={spec.watermark}")
        output = Location.of(_output(context, name, spec).removeprefix(DELTA_PREFIX), "output")
        root = searched_folder(files_of) if files_of is not None else None
        if root is not None and is_within(output.text, root):
            raise BadInput(
                f"output {output.text!r} is within the input {spec.input!r} and would become input; give another folder"
            )
        if not output.is_local:
            return
        target = Path(output.path)
        place = next(folder for folder in (target, *target.parents) if folder.exists())
        if not os.access(place, os.W_OK):
            raise BadInput(
                f"output {str(target)!r} cannot be written: {str(place)!r} is not writable; give another"
            )

    def absolute_paths(self, spec: BatchSpec) -> dict[str, str]:
        from mlflow_flywheel.pipelines.batch.inputs import DELTA_PREFIX
        from mlflow_flywheel.pipelines.batch.locations import Location

        changed = {}
        for key in ("input", "output"):
            value = getattr(spec, key)
            if value is not None and (key == "output" or spec.query is None):
                prefix = DELTA_PREFIX if value.startswith(DELTA_PREFIX) else ""
                changed[key] = prefix + Location.of(value.removeprefix(DELTA_PREFIX), key).text
        return changed

    def start(
        self, context: Context, name: str, spec: BatchSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        _prove(name, model, timeout)
        return None

    def swap(
        self, context: Context, record: DeploymentRecord, spec: BatchSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        if (model.ref.name, model.ref.version) != (record.model_name, record.version):
            _prove(record.name, model, timeout)
        return None  # the next run takes what the record says then

    def stop(self, context: Context, name: str, forget: BatchSpec | None = None) -> None:
        folder = _folder(context, name)
        for ours in (folder / "state", folder / "asked", folder / "runs", context.home.deployment(name)):
            shutil.rmtree(ours, ignore_errors=True)

    def predict(
        self, context: Context, record: DeploymentRecord, spec: BatchSpec, rows: pd.DataFrame, timeout: float
    ) -> Answers:
        import pyarrow.parquet as pq

        folder = _folder(context, record.name) / "asked" / uuid.uuid4().hex
        folder.mkdir(mode=0o700, parents=True)
        try:
            _with_named_columns(rows, spec).to_parquet(folder / "rows.parquet", index=False)
            request = BatchRequest(str(folder / "rows.parquet"), str(folder / "answers.parquet"), ())
            task = context.records.enqueue("batch_run", record.name, request.payload(), PREDICT)
            done = context.wait_for_task(task, timeout)
            if done.status == "failed":
                said = str(done.error).replace(f"input file {str(folder / 'rows.parquet')!r}: ", "")
                raise BadInput(f"batch deployment {record.name!r} could not score the rows: {said}")
            answers = pq.read_table(folder / "answers.parquet", columns=["prediction", "prediction_id"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Answers(answers.column("prediction").to_pylist(), answers.column("prediction_id").to_pylist())

    def state(self, context: Context, record: DeploymentRecord) -> str:
        return "ready"

    def places(self, context: Context, record: DeploymentRecord, spec: BatchSpec) -> Mapping[str, Any]:
        return {
            "input": spec.input,
            "output": _output(context, record.name, spec),
            "schedule": spec.schedule,
            **runs_view(context, record),
        }


def _prove(name: str, model: FetchedModel, timeout: float) -> None:
    """Let a version score its input example, in a process that it may take down; no worker does so before a job."""
    try:
        try_model(model.ref, timeout)
    except ModelError as error:
        raise ModelError(f"deployment {name!r} cannot serve: {error.message}") from None


def _with_named_columns(rows: pd.DataFrame, spec: BatchSpec) -> pd.DataFrame:
    """Add the id and time columns that a job insists on: who asks by hand need not have them."""
    missing = {name for name in (spec.id_column, spec.timestamp_column) if name} - set(rows.columns)
    return rows.assign(**dict.fromkeys(missing)) if missing else rows


def batch_job(context: Context, task: Task) -> BatchConfig:
    """Return the job that a `batch_run` task stands for, with the version that is in force when it is first tried.

    It is remembered: a task that is tried again goes on where its first attempt was killed, whatever happened to the
    deployment meanwhile. Raises BadInput when neither the task nor the deployment says what to score.
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
        model = model_in_force(context, record)
        batch_config(context, record.name, model, spec, BatchRequest.of(task.payload), job_id).save(
            remembered
        )
    return load_config(BatchConfig, remembered)


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
    output = request.output or _output(context, name, spec)
    if backfill or watermark is not None:
        output = place_of_run(output, "a back-fill" if backfill else f"watermark={watermark}", job_id)
    return BatchConfig(
        deployment=name,
        model=model,
        variant=BACKFILL if backfill else spec.variant,
        tables=context.home.tables,
        state_dir=str(_folder(context, name) / "state"),
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
            "times; set it ('mlflow deployments update -C timestamp_column=...'), or name the files with --input"
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
    return f"{record.name}-{record.created:%Y%m%d%H%M%S}-{task_id}"


def job_file(context: Context, deployment: str, job_id: str) -> Path:
    """Return the file that remembers what a job was first told."""
    return _folder(context, deployment) / "state" / "tasks" / f"{job_id}.json"


def _is_table(place: str) -> bool:
    from mlflow_flywheel.pipelines.batch.inputs import DELTA_PREFIX, is_delta
    from mlflow_flywheel.pipelines.batch.locations import Location

    return place.startswith(DELTA_PREFIX) or is_delta(Location.of(place, "place"))


def _folder(context: Context, name: str) -> Path:
    return context.home.batch / name


def _output(context: Context, name: str, spec: BatchSpec) -> str:
    return spec.output or str(_folder(context, name) / "output")
