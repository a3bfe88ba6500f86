"""A run of a batch deployment as an MLflow run, nested in the deployment's long-lived one.

It has the counts, the time and the cost as metrics, its input and its output as datasets, and its log as an artifact.
The deployment's own run gets a point of each series per run, at the event time of the newest row; back-fills, which are
about the past, have series of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ended_run import refused
from .reporting import (
    DEPLOYMENT_TAG,
    KIND_TAG,
    MODEL_TAG,
    PARENT_TAG,
    deployment_run,
    experiment_id,
    finish_run,
    mlflow_errors,
    plain_markdown,
    points_at,
    quoted,
)
from .windows import epoch_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

JOB_TAG = "flywheel.job"
_SERIES = ("rows_out", "rows_rejected", "seconds", "cost")
_TAG_LENGTH = 4000
_MOST_COLUMNS = 500


@dataclass(frozen=True)
class StartedBatch:
    """What is known of a run when it begins; `trigger` is schedule, hand or back-fill."""

    model: str
    deployment: str
    version: str
    model_id: str | None
    job_id: str
    trigger: str
    span: str | None
    started: datetime


@dataclass(frozen=True)
class DataPlace:
    """Where data is and what it looks like, for MLflow to show; it is not read for that."""

    name: str
    role: str
    source_type: str
    source: Mapping[str, Any]
    digest: str
    rows: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, location: str, name: str, role: str, identity: str, query: str | None = None) -> DataPlace:
        """Describe a file, folder, table or query; `identity` tells one state of it from another."""
        digest = sha256(identity.encode()).hexdigest()[:8]
        scheme, remote, _ = location.partition("://")
        kind, source = scheme if remote else "local", {"uri": location}
        if query is not None:
            kind, source = "sql", {"uri": location, "query": query}
        elif location.startswith("delta:"):
            kind, source = "delta_table", {"path": location.removeprefix("delta:")}
        return cls(name, role, kind, source, digest)


@dataclass(frozen=True)
class BatchOutcome:
    """How a run ended; `failure` is why it failed, or None, and `as_of` the event time that it has come to."""

    ended: datetime
    as_of: datetime
    metrics: Mapping[str, float]
    failure: str | None = None
    places: Sequence[DataPlace] = ()
    watermark: str | None = None
    log: Path | None = None


def begin_batch_run(client: MlflowClient, batch: StartedBatch) -> tuple[str, str]:
    """Return the ids of the deployment's run and of the run of a job, which is made unless MLflow has it already."""
    parent = deployment_run(client, batch.model, batch.deployment, "batch")
    experiment = experiment_id(client, batch.model)
    with mlflow_errors(client, f"log the batch run {batch.job_id!r}"):
        query = f"tags.`{JOB_TAG}` = '{quoted(batch.job_id)}' and tags.`{PARENT_TAG}` = '{parent}'"
        found = client.search_runs([experiment], query, max_results=1)
        if found:
            return parent, str(found[0].info.run_id)
        tags = {
            KIND_TAG: "batch",
            MODEL_TAG: batch.model,
            DEPLOYMENT_TAG: batch.deployment,
            JOB_TAG: batch.job_id,
            "flywheel.version": batch.version,
            "flywheel.trigger": batch.trigger,
            PARENT_TAG: parent,
        }
        if batch.span is not None:
            tags["flywheel.span"] = batch.span
        name = f"{batch.deployment} {batch.started:%Y-%m-%d %H:%M}"
        run = client.create_run(experiment, epoch_ms(batch.started), tags, name)
    return parent, str(run.info.run_id)


def end_batch_run(
    client: MlflowClient, batch: StartedBatch, run_id: str, outcome: BatchOutcome, parent: str | None = None
) -> None:
    """Log how a run ended, and if it answered anything its point of the deployment's series. Doing so again changes
    nothing.

    Raises NotFound when MLflow will never take it, as of a run that somebody deleted.
    """
    with mlflow_errors(client, f"log the end of the batch run {batch.job_id!r}"), refused(run_id):
        _log_places(client, run_id, batch, outcome)
        client.log_batch(
            run_id, metrics=points_at(outcome.metrics, outcome.as_of), tags=_closing_tags(outcome)
        )
        if outcome.log is not None:
            client.log_artifact(run_id, str(outcome.log))
        status = "FINISHED" if outcome.failure is None else "FAILED"
        finish_run(client, run_id, status, outcome.ended)
        if not outcome.metrics.get("rows_out"):
            return  # it has come to no event time, and a point by the clock would stretch the charts of a replay
        parent = parent or str(client.get_run(run_id).data.tags[PARENT_TAG])
        kind = "batch" if batch.span is None else "backfill"
        series = {f"{kind}/{name}": outcome.metrics[name] for name in _SERIES if name in outcome.metrics}
        client.log_batch(parent, metrics=points_at(series, outcome.as_of))


def _log_places(client: MlflowClient, run_id: str, batch: StartedBatch, outcome: BatchOutcome) -> None:
    from mlflow.entities import LoggedModelInput

    links = [_dataset(place) for place in outcome.places]
    models = [LoggedModelInput(batch.model_id)] if batch.model_id else None
    if links or models:
        client.log_inputs(run_id, links, models)


def _dataset(place: DataPlace) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    columns = [
        {"type": _mlflow_type(kind), "name": name, "required": False}
        for name, kind in list(place.columns.items())[:_MOST_COLUMNS]
    ]
    dataset = Dataset(
        name=place.name,
        digest=place.digest,
        source_type=place.source_type,
        source=json.dumps(place.source),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({"num_rows": place.rows}) if place.rows is not None else None,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", place.role)])


def _mlflow_type(kind: str) -> str:
    if kind.startswith(("int", "uint", "float", "half", "double", "decimal")):
        return "double"
    if kind.startswith(("timestamp", "date", "time")):
        return "datetime"
    return "boolean" if kind == "bool" else "string"


def _closing_tags(outcome: BatchOutcome) -> list[Any]:
    from mlflow.entities import RunTag

    tags = {} if outcome.watermark is None else {"flywheel.watermark": outcome.watermark}
    if outcome.failure is not None:
        tags["flywheel.failure"] = outcome.failure
        tags["mlflow.note.content"] = f"**Failed:** {plain_markdown(outcome.failure)}"
    return [RunTag(key, value[:_TAG_LENGTH]) for key, value in tags.items()]
