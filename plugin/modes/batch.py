"""Batch deployments: no process of their own; the daemon runs their jobs."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.trial import try_model
from mlflow_flywheel.plugin.batch_jobs import BatchRequest, batch_folder, output_of, place_of_run
from mlflow_flywheel.plugin.batch_runs import PREDICT, runs_view
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.model_files import FetchedModel
from mlflow_flywheel.plugin.record_types import DeploymentRecord
from mlflow_flywheel.plugin.spec import BatchSpec

from .base import Answers

if TYPE_CHECKING:
    import pandas as pd


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
            place_of_run(output_of(context, name, spec), f"watermark={spec.watermark}")
        output = Location.of(output_of(context, name, spec).removeprefix(DELTA_PREFIX), "output")
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
        folder = batch_folder(context, name)
        for ours in (
            context.home.batch_state(name),
            folder / "asked",
            folder / "runs",
            context.home.deployment(name),
        ):
            shutil.rmtree(ours, ignore_errors=True)

    def predict(
        self, context: Context, record: DeploymentRecord, spec: BatchSpec, rows: pd.DataFrame, timeout: float
    ) -> Answers:
        import pyarrow.parquet as pq

        folder = batch_folder(context, record.name) / "asked" / uuid.uuid4().hex
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
            "output": output_of(context, record.name, spec),
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
