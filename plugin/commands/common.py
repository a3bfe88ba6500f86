"""What the commands share: a home, output for people or machines, and one clear line for what goes wrong."""

from __future__ import annotations

import functools
import getpass
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import click

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, ModelError, NotFound, nearest
from mlflow_flywheel.pipelines.times import parse_time
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.record_types import DeploymentRecord, Task, TaskKind

F = TypeVar("F", bound=Callable[..., Any])
_PIPED_WIDTH = 200
TASK_SECONDS = 2 * 3600.0


def command(function: F) -> F:
    """Give a command `--home` and `--json`, hand it an opened Context, and show our errors as one clear line."""

    @click.option("--home", metavar="DIR", help="the home folder  [default: $FLYWHEEL_HOME or ~/.flywheel]")
    @click.option("--json", "as_json", is_flag=True, help="print JSON for machines")
    @functools.wraps(function)
    def wrapped(home: str | None, as_json: bool, **options: Any) -> None:
        with clear_errors():
            context = Context.open(Home(home) if home else Home.default())
            try:
                function(context, as_json, **options)
            finally:
                context.records.close()

    return wrapped  # type: ignore[return-value]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn our errors into click's: `Error: ...` and exit code 1, without a traceback."""
    try:
        yield
    except FlywheelError as error:
        raise click.ClickException(error.message) from error


def print_json(value: Any) -> None:
    """Print for machines."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a short table for people."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something takes its time, on a terminal only."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def do_task(context: Context, kind: TaskKind, subject: str, payload: Mapping[str, Any], text: str) -> Task:
    """Let the daemon do a task now, and return it when it is done.

    Raises ModelError with the task's own words when it fails.
    """
    context.ensure_daemon()
    task_id = context.records.enqueue(kind, subject, payload, "cli")
    with waiting(text):
        task = context.wait_for_task(task_id, TASK_SECONDS)
    if task.status == "failed":
        raise ModelError(task.error or f"{kind} of {subject!r} failed; 'flywheel logs daemon' says more")
    return task


def time_of(option: str, text: str) -> datetime:
    """Read the time that an option was given. Raises BadInput that names both."""
    try:
        return parse_time(text)
    except ValueError:
        raise BadInput(f"{option} {text!r} is no time; give ISO 8601, such as 2013-03-01T00:00:00Z") from None


def requested_by() -> str:
    """Return who asks, as far as this machine knows."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):
        return "command line"


def find_deployment(context: Context, name: str) -> DeploymentRecord:
    """Return a deployment by name; raises NotFound that names the nearest."""
    return context.records.deployment(name)


def find_model(context: Context, name: str) -> str:
    """Return the registered model of a deployment, or the name itself when it is a deployed model's."""
    deployments = context.records.deployments()
    models = {record.model_name for record in deployments}
    if name in models:
        return name
    for record in deployments:
        if record.name == name:
            return record.model_name
    known = sorted(models | {record.name for record in deployments})
    raise NotFound(
        f"{name!r} is neither a deployment nor a deployed model of home {str(context.home.path)!r}"
        f"{nearest(name, known)}; known: {', '.join(known) or 'none'}"
    )
