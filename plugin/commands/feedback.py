"""feedback: labels from files, now or whenever they arrive in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mlflow_flywheel.pipelines.config import OnError
from mlflow_flywheel.plugin.context import Context

from .common import command, find_model, print_json

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.labels import Taken


@click.command()
@click.argument("name")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="a row that is no label keeps its file out, or is set aside with the reason",
)
@click.option(
    "--watch", metavar="FOLDER", help="let the daemon take what arrives in this folder, from now on"
)
@click.option("--stop", is_flag=True, help="with --watch: watch the folder no longer")
@command
def feedback(
    context: Context,
    as_json: bool,
    name: str,
    files: tuple[str, ...],
    on_error: OnError,
    watch: str | None,
    stop: bool,
) -> None:
    """Give the labels in FILEs to the model of deployment NAME.

    A FILE is CSV, JSON Lines (both also .gz) or Parquet, a folder or a glob of such, here or in a store (s3://...). Its
    columns: prediction_id or client_request_id, label, and optionally label_time and source. Each file is taken whole,
    and once: one with the same bytes is known again, so that giving files a second time is harmless.
    """
    if bool(files) == (watch is not None) or (stop and watch is None):
        raise click.UsageError("give FILEs, or --watch FOLDER (and --stop to end that)")
    if watch is None:
        _give(context, as_json, find_model(context, name), files, on_error)
    elif stop:
        _stop(context, as_json, name, watch)
    else:
        _watch(context, as_json, find_model(context, name), watch, on_error)


def _give(context: Context, as_json: bool, model: str, files: tuple[str, ...], on_error: OnError) -> None:
    from mlflow_flywheel.plugin.labels import find_label_files, give_labels, labelled_table

    labelled_table(context, model)
    found = find_label_files(files)
    taken: list[Taken] = []
    try:
        with _progress() as progress:
            skip = on_error == "skip"
            given = give_labels(context, model, found, skip=skip, progress=progress, done=taken.append)
    finally:
        for each in taken if not as_json else ():
            _tell(each)
    if as_json:
        print_json({"model": model, **given})
        return
    click.echo(
        f"{given['accepted']:,} labels accepted; {given['labelled']:,} of {given['rows']:,} predictions of {model} "
        "have a label now"
    )
    if given["unmatched"]:
        click.echo(
            f"{given['unmatched']:,} labels name ids that no prediction has; they wait in case one comes"
        )


def _tell(taken: Taken) -> None:
    """Say of a file what does not go without saying."""
    if taken.before:
        click.echo(f"{taken.file} was taken before; nothing of it is taken twice")
    if taken.rejected:
        click.echo(
            f"{taken.file}: {taken.rejected:,} rows were set aside, for the reasons in {taken.rejects}"
        )


def _watch(context: Context, as_json: bool, model: str, folder: str, on_error: OnError) -> None:
    from mlflow_flywheel.plugin.label_folders import watch_folder
    from mlflow_flywheel.plugin.labels import labelled_table

    labelled_table(context, model)
    watched = watch_folder(context.home, model, folder, on_error)
    context.ensure_daemon()
    if as_json:
        print_json({"model": model, "folder": watched.folder, "on_error": on_error, "watched": True})
        return
    click.echo(
        f"labels of {model} are taken from {watched.folder} from now on, each file once when it is complete; "
        "'flywheel status' shows what became of them"
    )


def _stop(context: Context, as_json: bool, name: str, folder: str) -> None:
    from mlflow_flywheel.plugin.label_folders import stop_watching, watched_folders

    models = {watched.model for watched in watched_folders(context.home)}
    model = name if name in models else find_model(context, name)  # whose deployments may be gone
    watched = stop_watching(context.home, model, folder)
    if as_json:
        print_json({"model": model, "folder": watched.folder, "watched": False})
    else:
        click.echo(f"labels of {model} are no longer taken from {watched.folder}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, float | None], None]]:
    """Show how far the present file was read, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} labels"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None, rows=0)

        def tell(file: str, rows: int, read: float | None) -> None:
            share: dict[str, Any] = {"total": None} if read is None else {"total": 1.0, "completed": read}
            bar.update(task, description=os.path.basename(file), rows=rows, **share)

        yield tell
