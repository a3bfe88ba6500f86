"""Verdicts in MLflow: runs, series in event time, reports, and what a model version's page says of it.

Experiment `flywheel/<model>` holds one long-lived run per deployment and one for the model itself, whose metric
series are the dashboard, and a nested run per monitor execution with its evidence. Metrics are stamped with the moment
they are about, not with when they were computed; a step is that moment in minutes since 1970, so steps grow with time
whoever writes them, and a repeated execution writes the same point again.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.times import as_utc

from .experiment_view import VIEW, VIEW_TAG, saved_view, wants_view
from .verdicts import Verdict, worst
from .version_page import show_on_version
from .windows import Window, epoch_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

REPORT_ARTIFACT = "reports/drift.html"
OVERVIEW_ARTIFACT = "reports/overview.html"
KIND_TAG = "flywheel.kind"
MODEL_TAG = "flywheel.model"
DEPLOYMENT_TAG = "flywheel.deployment"
PARENT_TAG = "mlflow.parentRunId"
_NOTE = "mlflow.note.content"
# Without it MLflow's UI shows the run among language-model evaluations, away from its charts.
_VIEW = "?workflowType=machine_learning"
_TAG_LENGTH = 4000
_MOST_COLUMNS = 500


def experiment_id(client: MlflowClient, model: str) -> str:
    """Return the id of the experiment `flywheel/<model>`, which is made if need be.

    Raises BadInput when somebody deleted it: it must be restored or purged by hand.
    """
    return _experiment_id(client, client.tracking_uri, f"flywheel/{model}")


def deployment_run(client: MlflowClient, model: str, deployment: str, mode: str) -> str:
    """Return the id of a deployment's running long-lived run, which is started if there is none."""
    tags = {DEPLOYMENT_TAG: deployment, "flywheel.mode": mode}
    return _long_lived(client, model, "deployment", f"{deployment} ({mode})", tags)


def model_run(client: MlflowClient, model: str) -> str:
    """Return the id of the model's own long-lived run, whose series are what the monitors say over time."""
    return _long_lived(client, model, "model", model, {})


def log_deployment_metrics(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], as_of: datetime
) -> None:
    """Add a point to each series of a long-lived run, at the event time `as_of`. One request."""
    with mlflow_errors(client, "log metrics"):
        client.log_batch(run_id, metrics=points_at(metrics, as_of))


def log_monitor_run(
    client: MlflowClient,
    model: str,
    version: str,
    as_of: datetime,
    verdicts: Sequence[Verdict],
    *,
    model_id: str | None = None,
    html: str | None = None,
    overview: str | None = None,
    rows: pa.Table | None = None,
    source: str = "",
    table_version: int | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log one execution of the monitors and return its run id.

    The nested run has the verdicts as tags and JSON, their metrics as `<monitor>/<metric>`, linked to the logged model
    and to the window as dataset, the evidence tables as CSV, the drift report as `reports/drift.html` and the overview as
    `reports/overview.html`. The same metrics are added to the series of the parent (default: the model's run), and the
    model version's tags and description name the newest verdicts and report. `rows` is the window; only its size and
    columns are logged, never its values.
    """
    parent = parent_run_id or model_run(client, model)
    experiment = experiment_id(client, model)
    window = verdicts[0].window if verdicts else None
    metrics = {f"{v.monitor}/{name}": value for v in verdicts for name, value in v.metrics.items()}
    every = {**_run_tags(model, version, as_of, verdicts, window), PARENT_TAG: parent, **(tags or {})}
    with mlflow_errors(client, f"log the monitors of {model!r}"):
        run = client.create_run(experiment, tags=every, run_name=f"monitor {as_utc(as_of):%Y-%m-%d %H:%M}")
        run_id = str(run.info.run_id)
        try:
            dataset = _log_window(client, run_id, model, window, rows, source, table_version, model_id)
            client.log_batch(run_id, metrics=points_at(metrics, as_of, model_id, dataset))
            _log_files(client, run, verdicts, {REPORT_ARTIFACT: html, OVERVIEW_ARTIFACT: overview})
        except BaseException:
            finish_run(client, run_id, "FAILED")
            raise
        finish_run(client, run_id, "FINISHED")
        note = [_tag(_NOTE, _note(verdicts, experiment, run_id, html is not None))]
        client.log_batch(parent, metrics=points_at(metrics, as_of), tags=note)
        if version:
            link = run_link(experiment, run_id, html is not None)
            show_on_version(client, model, version, as_of, verdicts, link)
    return run_id


def run_link(experiment: str, run_id: str, report: bool) -> str:
    """Return the place of a run, or of its report, inside the MLflow UI."""
    if report:
        return artifact_link(experiment, run_id, REPORT_ARTIFACT)
    return f"#/experiments/{experiment}/runs/{run_id}{_VIEW}"


def charts_link(experiment: str) -> str:
    """Return the place inside the MLflow UI of the charts of every deployment over time."""
    return f"#/experiments/{experiment}/runs{_VIEW}&viewStateShareKey={VIEW}&compareRunsMode=CHART"


def artifact_link(experiment: str, run_id: str, artifact: str) -> str:
    """Return the place inside the MLflow UI where it shows an artifact of a run."""
    return f"#/experiments/{experiment}/runs/{run_id}/artifacts/{artifact}{_VIEW}"


def _long_lived(client: MlflowClient, model: str, kind: str, name: str, tags: Mapping[str, str]) -> str:
    from mlflow.entities import ViewType

    experiment = experiment_id(client, model)
    wanted = {KIND_TAG: kind, **{tag: value for tag, value in tags.items() if tag == DEPLOYMENT_TAG}}
    query = " and ".join(f"tags.`{tag}` = '{quoted(value)}'" for tag, value in wanted.items())
    with mlflow_errors(client, f"find the run of {name!r}"):
        found = client.search_runs(
            [experiment], f"{query} and attributes.status = 'RUNNING'", ViewType.ACTIVE_ONLY, max_results=1
        )
        if found:
            return str(found[0].info.run_id)
        run = client.create_run(experiment, tags={KIND_TAG: kind, MODEL_TAG: model, **tags}, run_name=name)
    return str(run.info.run_id)


def finish_run(client: MlflowClient, run_id: str, status: str, ended: datetime | None = None) -> None:
    """End a run, without the lines that MLflow would ask the server for and print for every run that ends."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    client.set_terminated(run_id, status, None if ended is None else epoch_ms(ended))


def quoted(value: str) -> str:
    """Return a value as it may stand between quotes in a search. Raises BadInput for one that may not."""
    if "'" in value or "`" in value:
        raise BadInput(f"{value!r} cannot be looked up in MLflow; use a name without quotes")
    return value


def _run_tags(
    model: str, version: str, as_of: datetime, verdicts: Sequence[Verdict], window: Window | None
) -> dict[str, str]:
    tags = {
        KIND_TAG: "monitor",
        MODEL_TAG: model,
        "flywheel.version": version,
        "flywheel.as_of": as_utc(as_of).isoformat(),
        "flywheel.verdict": worst(verdicts),
        _NOTE: "\n\n".join(f"**{v.monitor}: {v.status}**: {plain_markdown(v.summary)}" for v in verdicts)[
            :_TAG_LENGTH
        ],
    }
    if window is not None:
        tags["flywheel.window"] = f"{window.start.isoformat()}/{window.end.isoformat()}"
    return tags | {f"flywheel.verdict.{v.monitor}": v.status for v in verdicts}


def _note(verdicts: Sequence[Verdict], experiment: str, run_id: str, report: bool) -> str:
    said = "\n".join(f"- **{v.monitor}: {v.status}**: {plain_markdown(v.summary)}" for v in verdicts)
    return f"Newest: [{'drift report' if report else 'monitor run'}]({run_link(experiment, run_id, report)})\n\n{said}"


def plain_markdown(text: str) -> str:
    """Keep names that hold Markdown or HTML from being taken as such."""
    return "".join("\\" + c if c in "\\`*_[]<>#|" else c for c in text)


def points_at(
    metrics: Mapping[str, float],
    as_of: datetime,
    model_id: str | None = None,
    dataset: tuple[str, str] | None = None,
) -> list[Metric]:
    from mlflow.entities import Metric

    stamp = epoch_ms(as_of)
    name, digest = dataset or (None, None)
    return [
        Metric(
            key, value, stamp, stamp // 60_000, model_id=model_id, dataset_name=name, dataset_digest=digest
        )
        for key, value in metrics.items()
    ]


def _tag(key: str, value: str) -> Any:
    from mlflow.entities import RunTag

    return RunTag(key, value[:_TAG_LENGTH])


def _log_window(
    client: MlflowClient,
    run_id: str,
    model: str,
    window: Window | None,
    rows: pa.Table | None,
    source: str,
    table_version: int | None,
    model_id: str | None,
) -> tuple[str, str] | None:
    """Link the window to the run as its dataset: where it is and what it looks like, without reading it again."""
    from mlflow.entities import LoggedModelInput

    if rows is None or window is None:
        return None
    place = {"path": source, "delta_table_version": table_version, "window": str(window)}
    digest = sha256(json.dumps([place, rows.num_rows], sort_keys=True).encode()).hexdigest()[:8]
    link = table_input(f"{model} window", place, digest, rows.schema, rows.num_rows, "monitoring")
    client.log_inputs(run_id, [link], [LoggedModelInput(model_id)] if model_id else None)
    return link.dataset.name, digest


def table_input(
    name: str, place: Mapping[str, Any], digest: str, schema: pa.Schema, rows: int, context: str
) -> DatasetInput:
    """Return rows of a Delta table as a dataset that MLflow shows with a run; none of their values is in it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    columns = [
        {"type": _mlflow_type(field.type), "name": field.name, "required": False}
        for field in list(schema)[:_MOST_COLUMNS]
    ]
    dataset = Dataset(
        name=name,
        digest=digest,
        source_type="delta_table",
        source=json.dumps(place),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps({"num_rows": rows}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _mlflow_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_temporal(kind):
        return "datetime"
    return "double" if pa.types.is_floating(kind) or pa.types.is_integer(kind) else "string"


def _log_files(
    client: MlflowClient, run: Run, verdicts: Sequence[Verdict], pages: Mapping[str, str | None]
) -> None:
    with tempfile.TemporaryDirectory(prefix="flywheel-monitor-") as folder:
        root = Path(folder)
        (root / "verdicts.json").write_text(json.dumps([v.to_dict() for v in verdicts], indent=1))
        for verdict in verdicts:
            write_csv(verdict.evidence, root / "evidence" / f"{verdict.monitor}.csv")
        for artifact, html in pages.items():
            if html is not None:
                page = root / artifact
                page.parent.mkdir(exist_ok=True)
                page.write_text(html, encoding="utf-8", errors="replace")
        client.log_artifacts(run.info.run_id, folder)


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    if not rows:
        return
    path.parent.mkdir(exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    """Keep spreadsheets from running a name that starts like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


@lru_cache(maxsize=64)
def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    with mlflow_errors(client, f"open the experiment {name!r}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                found = client.get_experiment(client.create_experiment(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)  # another process made it first
        assert found is not None
        if found.lifecycle_stage != "active":
            raise BadInput(
                f"experiment {name!r} is deleted, so nothing can be logged there; restore it with "
                f"`mlflow experiments restore -x {found.experiment_id}`"
            )
        if wants_view(found.tags.get(VIEW_TAG)):
            client.set_experiment_tag(found.experiment_id, VIEW_TAG, saved_view())
    return str(found.experiment_id)


@contextmanager
def mlflow_errors(client: MlflowClient, what: str) -> Iterator[None]:
    """Turn MLflow's errors into ours: logging can be tried again later."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise Unavailable(f"cannot {what} in MLflow at {client.tracking_uri!r}: {error.message}") from error
