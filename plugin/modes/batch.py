"""Batch deployments: no process of their own; the daemon runs their jobs."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.config import BatchConfig, ModelRef, load_config
from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.trial import try_model
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.model_files import FetchedModel, model_in_force
from mlflow_flywheel.plugin.record_types import DeploymentRecord, Task
from mlflow_flywheel.plugin.spec import BatchSpec
from mlflow_flywheel.plugin.spec_reading import parse_spec

from .base import Answers

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BatchRequest:
    """What one run is asked for; the payload of a `batch_run` task.

    Without `input` it is the deployment's own, with what is new in it since its last run.
    """

    input: str | None = None
    output: str | None = None
    passthrough: tuple[str, ...] | None = None

    def payload(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"input": self.input, "output": self.output, "passthrough": self.passthrough}

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> BatchRequest:
        """Read the JSON form; an empty payload asks for the deployment's own input."""
        kept = payload.get("passthrough")
        return cls(payload.get("input"), payload.get("output"), None if kept is None else tuple(kept))


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
            if tables and spec.schedule is not None:
                raise BadInput(
                    f"input {spec.input!r} is a Delta table, and a scheduled run would score all of it every time; give "
                    "a folder of files, or leave out schedule="
                )
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
        for ours in (folder / "state", folder / "asked", context.home.deployment(name)):
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
            task = context.records.enqueue("batch_run", record.name, request.payload(), "predict")
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
        return {"input": spec.input, "output": _output(context, record.name, spec), "schedule": spec.schedule}


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
    job_id = f"{record.name}-{record.created:%Y%m%d%H%M%S}-{task.id}"
    remembered = _folder(context, record.name) / "state" / "tasks" / f"{job_id}.json"
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
    from mlflow_flywheel.pipelines.batch.inputs import is_delta
    from mlflow_flywheel.pipelines.batch.locations import Location

    source = request.input or spec.input
    if source is None:
        raise BadInput(
            f"batch deployment {name!r} has no input; set it ('mlflow deployments update -C input=...') or name one: "
            f"'flywheel batch run {name} --input ...'"
        )
    query = spec.query if request.input in (None, spec.input) else None  # of another input all is scored
    return BatchConfig(
        deployment=name,
        model=model,
        variant=spec.variant,
        tables=context.home.tables,
        state_dir=str(_folder(context, name) / "state"),
        job_id=job_id,
        input=source,
        query=query,
        output=request.output or _output(context, name, spec),
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
        incremental=request.input is None
        and query is None
        and not source.startswith("delta:")
        and not is_delta(Location.of(source, "input")),
    )


def _folder(context: Context, name: str) -> Path:
    return context.home.batch / name


def _output(context: Context, name: str, spec: BatchSpec) -> str:
    return spec.output or str(_folder(context, name) / "output")
