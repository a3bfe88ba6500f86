"""batch: runs of batch deployments, now or over a span of the past."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.plugin.batch_jobs import BatchRequest, check_span, job_id_of
from mlflow_flywheel.plugin.batch_progress import RunFolder, RunProgress
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.modes.batch import BatchOperations
from mlflow_flywheel.plugin.record_types import DeploymentRecord, Task
from mlflow_flywheel.plugin.spec import BatchSpec
from mlflow_flywheel.plugin.spec_reading import parse_spec

from .common import TASK_SECONDS, command, find_deployment, print_json, time_of

_LOOK_SECONDS = 0.25
_MLFLOW_SECONDS = 5.0


@click.group()
def batch() -> None:
    """Runs of batch deployments."""


@batch.command("run")
@click.argument("name")
@click.option("--input", "source", help="score this instead of what is new in the deployment's input")
@click.option("--output", help="where to; needed to keep answers of another input apart")
@click.option(
    "--from", "start", metavar="ISO", help="back-fill: score again all rows from this time on, new or not"
)
@click.option("--to", "end", metavar="ISO", help="back-fill: end of the span, not included")
@command
def batch_run(
    context: Context,
    as_json: bool,
    name: str,
    source: str | None,
    output: str | None,
    start: str | None,
    end: str | None,
) -> None:
    """Score now what is new in the deployment's input (or --input), or all rows of a span of time.

    A back-fill goes by the deployment's timestamp_column. It changes nothing about what counts as new.
    """
    record = find_deployment(context, name)
    spec = parse_spec(record.config)
    if not isinstance(spec, BatchSpec):
        raise BadInput(f"deployment {name!r} is a {record.mode} deployment; only batch deployments have runs")
    asked = spec.model_copy(update={"input": source, "output": output, "query": None})
    paths = BatchOperations().absolute_paths(asked)
    request = BatchRequest(
        paths.get("input"),
        paths.get("output"),
        start=None if start is None else time_of("--from", start),
        end=None if end is None else time_of("--to", end),
    )
    if request.is_backfill:
        check_span(name, spec, request)
    task = _run(context, record, request)
    result = dict(task.result or {}) | {"run_id": _mlflow_run(context, task)}
    if as_json:
        print_json(result)
        return
    _say(result)


def _run(context: Context, record: DeploymentRecord, request: BatchRequest) -> Task:
    """Let the daemon do a run now, and show how far it is. Raises ModelError with its own words when it fails."""
    context.ensure_daemon()
    task_id = context.records.enqueue("batch_run", record.name, request.payload(), "cli")
    folder = RunFolder.of(context.home, record.name, job_id_of(record, task_id))
    with _progress(record.name) as show:
        task = context.wait_for_task(task_id, TASK_SECONDS, lambda: show(folder.read()), _LOOK_SECONDS)
    if task.status == "failed":
        raise ModelError(task.error or f"the run of {record.name!r} failed; 'flywheel logs daemon' says more")
    return task


def _mlflow_run(context: Context, task: Task) -> str | None:
    """Return the MLflow run, which follows a moment later; None while MLflow is away."""
    deadline = time.monotonic() + _MLFLOW_SECONDS
    while True:
        run = context.records.batch_run(task.id)
        if run is None or run.run_id is not None or time.monotonic() >= deadline:
            return None if run is None else run.run_id
        time.sleep(_LOOK_SECONDS)


def _say(result: Mapping[str, Any]) -> None:
    click.echo(f"{result['rows_out']:,} rows from {result['files']} files in {result['seconds']:.1f} s")
    if result.get("resumed"):
        click.echo(f"the run that failed has gone on to its end (job {result['resumed']})")
    if result.get("more_follows"):
        click.echo("a run over what came since then follows")
    for written in result.get("outputs", []):
        click.echo(f"  {written}")
    if result.get("rejects"):
        rejected, files = result["rows_rejected"], result["files_rejected"]
        click.echo(f"set aside: {rejected:,} rows and {files} whole files, for the reasons in")
        for written in result["rejects"]:
            click.echo(f"  {written}")
    if result.get("watermark") is not None:
        click.echo(f"watermark: {result['watermark']}")
    if result["run_id"] is not None:
        click.echo(f"MLflow run: {result['run_id']}")
    else:
        click.echo("MLflow does not answer; the run will be there when it does ('flywheel status')")


@contextmanager
def _progress(name: str) -> Iterator[Callable[[RunProgress | None], None]]:
    """Show rows and files, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"running {name}", total=None, said="waiting")

        def show(progress: RunProgress | None) -> None:
            if progress is not None:
                said = f"{progress.rows:,} rows, {progress.rows_per_second:,.0f} rows/s"
                bar.update(task, completed=progress.files_done, total=progress.files, said=said)

        yield show
