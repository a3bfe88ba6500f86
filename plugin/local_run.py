"""`mlflow deployments run-local`: a deployment in the foreground, in a home that goes with it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from mlflow_flywheel.pipelines.batch import BatchProgress, run_batch
from mlflow_flywheel.pipelines.errors import BadInput

from .batch_jobs import BatchRequest, batch_config
from .context import Context
from .home import HOME_VARIABLES, Home
from .logs import follow
from .model_files import fetch_model
from .modes.batch import BatchOperations
from .operations import Operations, texts
from .runners.base import deployment_process
from .spec import BatchSpec, Spec
from .spec_reading import check_name, parse_loop, parse_spec
from .views import deployment_view


def run_in_foreground(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Serve until Ctrl-C or SIGTERM, printing the log; a batch deployment runs once. Then nothing is left.

    Raises what creating a deployment raises.
    """
    raw = texts(config)
    spec = parse_spec(raw)
    parse_loop(raw)
    check_name(name)
    with _temporary_context() as context, _interruptible():
        if isinstance(spec, BatchSpec):
            _run_batch(context, name, model_uri, flavor, spec)
        else:
            _serve(context, name, model_uri, flavor, raw, spec)


def _run_batch(context: Context, name: str, model_uri: str, flavor: str | None, spec: BatchSpec) -> None:
    if spec.input is None:
        raise BadInput(
            "a batch deployment that runs locally needs input= (and takes output=, a folder for answers)"
        )
    output = spec.output or str(Path.cwd() / f"{name}-output")
    spec = spec.model_copy(update={"output": output})
    operations = BatchOperations()
    operations.check(context, name, spec)
    model = fetch_model(context, model_uri)
    model.flavor(flavor)
    click.echo(f"scoring {spec.input} with {model_uri} (version {model.ref.version or model.ref.name})")
    job = batch_config(context, name, model.ref, spec, BatchRequest(input=spec.input), job_id=f"{name}-local")
    result = run_batch(job, progress=_show if sys.stderr.isatty() else None)
    click.echo(f"{result.rows_out:,} rows in {result.seconds:.1f} s: {', '.join(result.outputs)}")
    if result.rejects:
        aside = f"{result.rows_rejected:,} rows and {result.files_rejected} whole files"
        click.echo(f"set aside: {aside}; the reasons are in {', '.join(result.rejects)}")


def _show(progress: BatchProgress) -> None:
    end = progress.files_done == progress.files
    text = f"\r{progress.rows:,} rows, {progress.files_done} of {progress.files} files"
    click.echo(text, err=True, nl=end)


def _serve(
    context: Context, name: str, model_uri: str, flavor: str | None, raw: Mapping[str, str], spec: Spec
) -> None:
    operations = Operations(context, say=click.echo)
    record = operations.create(name, model_uri, raw, flavor)
    view = deployment_view(context, record, predictions=0)
    places = [
        f"{key} {view[key]}" for key in ("url", "broker", "input_topic", "output_topic") if view.get(key)
    ]
    click.echo(
        f"{name} serves version {record.version or record.model_name}: {', '.join(places)} (Ctrl-C ends it)"
    )
    sys.stdout.flush()
    for text in follow(context.home.log_file(deployment_process(name))):
        click.echo(text, nl=False)


@contextmanager
def _temporary_context() -> Iterator[Context]:
    """Make a home that is bound to the caller's MLflow server, and leave neither processes nor files of it behind.

    The caller's own database and tables are none of its business, whatever the environment says of them.
    """
    kept = {name: os.environ.pop(name) for name in HOME_VARIABLES.values() if name in os.environ}
    folder = Path(tempfile.mkdtemp(prefix="flywheel-run-"))
    try:
        context = Context.open(Home(folder))
        try:
            yield context
        finally:
            context.runner.down()
            context.records.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.update(kept)


@contextmanager
def _interruptible() -> Iterator[None]:
    """End quietly on Ctrl-C and on SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopping")
    finally:
        signal.signal(signal.SIGTERM, before)
