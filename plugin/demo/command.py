"""`flywheel demo`: a year of real flights through the whole loop, on this machine, in minutes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from mlflow_flywheel.pipelines.errors import FlywheelError

if TYPE_CHECKING:
    from .summary import Summary

_INTERRUPTED = 130
_AGAIN_SECONDS = 0.05
LOGS = Path("run", "home", "logs")


class Months(click.ParamType[tuple[int, int]]):
    """A month, or two with a dash."""

    name = "months"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return first and last month."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no span of months; give one such as 2-12 or 7", param, ctx)
        return int(found[1]), int(found[2] or found[1])


@click.command()
@click.option("--months", type=Months(), default="2-12", show_default=True, help="months of 2013 to replay")
@click.option(
    "--exit", "leave", is_flag=True, help="stop everything at the end instead of keeping the UI open"
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="write the summary here"
)
@click.option(
    "--home", "folder", type=click.Path(path_type=Path, file_okay=False),
    help="folder to play in; what an earlier demo left there is removed  [default: ~/.flywheel-demo]",
)  # fmt: skip
@click.option(
    "--port", type=click.IntRange(1, 65535), help="port of MLflow's UI  [default: 5000, or a free one]"
)
@click.option("--seed", type=int, default=0, hidden=True)
@click.option(
    "--days", type=click.IntRange(min=1), hidden=True, help="replay the first days of the months only"
)
def demo(
    months: tuple[int, int],
    leave: bool,
    json_file: Path | None,
    folder: Path | None,
    port: int | None,
    seed: int,
    days: int | None,
) -> None:
    """Replay a year of real flights: one model, three modes, late labels, monitors, retraining, rollouts.

    It trains on January whether a flight will be late, deploys the model as web service, stream consumer and nightly
    batch, and ends with the January model against the flywheel, month by month. It keeps MLflow's UI open until
    Ctrl-C, and then stops everything that it started.
    """
    from rich.console import Console

    from .scenario import Plan, play
    from .show import Show

    folder = (folder or _default_folder()).expanduser().absolute()
    show = Show(Console())
    try:
        with ending_on_signals(), play(Plan(folder, months, days, port, seed), show) as summary:
            show.summary(summary)
            if json_file is not None:
                json_file.write_text(json.dumps(summary.to_json(), indent=2) + "\n")
            if not leave:
                show.note("\nMLflow stays open until Ctrl-C.")
                _until_interrupted()
        _check(summary)
    except Interrupted:
        click.echo("Interrupted; everything is stopped.", err=True)
        raise SystemExit(_INTERRUPTED) from None
    except FlywheelError as error:
        raise click.ClickException(f"{error.message}\nLogs: {folder / LOGS}") from error
    except Exception as error:
        trace = folder / LOGS / "demo.log"
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(traceback.format_exc())
        raise click.ClickException(f"{type(error).__name__}: {error}\nLogs: {trace.parent}") from error
    show.note("Everything is stopped.")


def _default_folder() -> Path:
    home = os.environ.get("FLYWHEEL_HOME")
    return Path(home) / "demo" if home else Path("~/.flywheel-demo")


class Interrupted(BaseException):
    """Somebody asked the demo to end; no handler of errors should swallow it."""


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raise Interrupted once on Ctrl-C or SIGTERM; impatient further ones do not cut the stopping short."""
    handled = (signal.SIGINT, signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    def end_after_all(lost: sys.UnraisableHookArgs) -> None:
        """Raise it again a little later: what is raised within a finalizer goes no further than that."""
        if lost.exc_type is Interrupted:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            hook(lost)

    hook = sys.unraisablehook
    before = {number: signal.signal(number, end) for number in (*handled, signal.SIGALRM)}
    sys.unraisablehook = end_after_all
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _until_interrupted() -> None:
    try:
        while True:
            signal.pause()
    except Interrupted:
        return


def _check(summary: Summary) -> None:
    table = summary.table
    if not table.complete:
        raise FlywheelError(
            f"the inference table has {table.rows:,} rows ({table.duplicates:,} duplicates, {table.labelled:,} labelled) "
            f"for {table.expected:,} answered flights and {table.labels:,} labels"
        )
