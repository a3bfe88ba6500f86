"""backtest: what a version would have done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from mlflow_flywheel.monitors.backtest import Backtest, Estimate, Period, reasons
from mlflow_flywheel.monitors.backtest_words import conclusion, interval, leak_note, names, shown_state
from mlflow_flywheel.plugin.context import Context

from .common import command, print_json, print_table, time_of

_SHOWN = ("auc", "log_loss", "accuracy", "mae")


@click.command()
@click.argument("uri", metavar="MODEL_URI")
@click.option("--against", metavar="MODEL_URI", help="compare with this version of the same model")
@click.option("--from", "start", metavar="ISO", help="first event time  [default: the first logged row]")
@click.option(
    "--to", "end", metavar="ISO", help="end of the span, not included  [default: after the last row]"
)
@click.option("--every", default="1w", show_default=True, help="length of a period, such as 1d or 4w")
@click.option(
    "--min-rows",
    default=50,
    show_default=True,
    type=click.IntRange(min=2),
    help="fewest labelled rows of a period that is measured",
)
@command
def backtest(
    context: Context,
    as_json: bool,
    uri: str,
    against: str | None,
    start: str | None,
    end: str | None,
    every: str,
    min_rows: int,
) -> None:
    """Score the logged events again with a registered version, and measure it on the labels that came.

    The result is an MLflow run with a point per period, and a report. Periods that hold rows on which a version was
    trained are marked and do not count.
    """
    from mlflow_flywheel.monitors.backtest_run import to_dict
    from mlflow_flywheel.monitors.windows import parse_duration
    from mlflow_flywheel.plugin.backtest import BacktestRequest, run_backtest

    first = None if start is None else time_of("--from", start)
    last = None if end is None else time_of("--to", end)
    request = BacktestRequest(uri, against, first, last, parse_duration(every), min_rows)
    with _progress() as progress:
        run = run_backtest(context, request, progress)
    if as_json:
        print_json({**to_dict(run.result), "run_id": run.run_id, "experiment_id": run.experiment})
        return
    _show(run.result)
    click.echo(run.link(context.tracking_uri))


def _show(result: Backtest) -> None:
    shown = [name for name in _SHOWN if name in result.metrics][:2]
    sides = [f"v{version}" for version in result.versions]
    columns = ["from", "rows", "labels"]
    columns += [f"{name} {side}" for name in shown for side in sides]
    columns += [f"{name} difference" for name in shown if len(sides) > 1] + ["note"]
    print_table(
        f"{result.model}, {' against '.join(names(result))}",
        columns,
        [_row(result, period, shown) for period in result.periods],
    )
    click.echo(conclusion(result))
    click.echo(leak_note(result))
    for place, name in enumerate(names(result)):
        for what, verb in (("unscored", "could not score"), ("remarks", "remark on")):
            for reason, rows in reasons(result.periods, place, what):
                click.echo(f"{name} {verb} {rows:,} rows: {reason}")


def _row(result: Backtest, period: Period, shown: list[str]) -> list[str]:
    cells = [f"{period.window.start:%Y-%m-%d %H:%M}", f"{period.events:,}", f"{period.labelled:,}"]
    cells += [_short(side.metrics.get(name)) for name in shown for side in period.sides]
    if len(period.sides) > 1:
        changes = (period.difference.get(name) for name in shown)
        cells += ["" if change is None else interval(change, signed=True) for change in changes]
    state = shown_state(period, result.spec.min_rows)
    return [*cells, "" if state == "ok" else state]


def _short(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.4g}"


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show how many periods are done, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scoring periods"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("periods", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
