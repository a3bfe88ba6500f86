"""What the demo tells whoever looks on: steps, progress, what the loop did, and the table that matters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .replay import Position, Retraining
from .summary import Month, Scores, Summary

_STYLES = {"ok": "green", "warn": "yellow", "alarm": "red", "unknown": "dim"}


class Show:
    """Writes to a console; on one that is no terminal, lines instead of moving pictures."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what is being done, and how long it took."""
        started = time.monotonic()
        with self._console.status(what):
            yield
        self._console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - started:.1f} s[/]")

    def note(self, text: str) -> None:
        """Say something."""
        self._console.print(escape(text), style="dim")

    @contextmanager
    def replay(self, flights: Mapping[str, int]) -> Iterator[ReplayShow]:
        """Show a replay of so many flights by deployment."""
        show = ReplayShow(self._console, flights)
        with show.live:
            yield show

    def summary(self, summary: Summary) -> None:
        """Print everything that a replay showed."""
        for table in (_months(summary), _deployments(summary), _actions(summary)):
            self._console.print()
            self._console.print(table)
        self._console.print()
        account = summary.table
        verdict = "[green]complete, nothing twice[/]" if account.complete else "[red]not as it should be[/]"
        self._console.print(
            f"inference table: {account.rows:,} rows for {account.expected:,} answered flights, "
            f"{account.duplicates:,} duplicates, {account.labelled:,} labelled: {verdict}"
        )
        gib = summary.peak_memory_bytes / 2**30
        self._console.print(f"{summary.seconds:.0f} s in all, {gib:.1f} GiB of memory at most")
        self._console.print()
        for name, url in summary.links.items():
            self._console.print(f"{name:<22} {url}", soft_wrap=True, highlight=False)


class ReplayShow:
    """The replay as it goes: one line of state, one bar per deployment, and a line for each turn of the loop."""

    def __init__(self, console: Console, flights: Mapping[str, int]) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(40),
            MofNCompleteColumn(),
            TextColumn("flights"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {
            name: self._bars.add_task(name, total=total) for name, total in flights.items()
        }
        self._console = console
        self._state = Text("")
        self.live = Live(
            Group(self._state, self._bars), console=console, refresh_per_second=5, transient=True
        )

    def moved(self, position: Position) -> None:
        """Show where the replay is."""
        for name, asked in position.asked.items():
            self._bars.update(self._tasks[name], completed=asked)
        parts = [
            f"{position.day:%a %d %b %Y}",
            f"version {position.version} in force",
            f"{position.labelled:,} labels",
        ]
        parts += [part for part in (_plain(position.verdicts), position.doing) if part]
        self._state.plain = "   ".join(parts)

    def looked(self, position: Position) -> None:
        """Keep a line about what the monitors said."""
        said = ", ".join(
            f"{name} [{_STYLES[status]}]{status}[/]" for name, status in position.verdicts.items()
        )
        self._console.print(f"[bold]{position.day:%d %b}[/]  {said}  [dim]{escape(position.reason)}[/]")

    def retrained(self, done: Retraining) -> None:
        """Keep a line about how a retraining ended."""
        mark = "[green]promoted[/]" if done.promoted else "[yellow]stayed[/]"
        self._console.print(f"        retrained: {mark}  [dim]{escape(done.said)}[/]")


def _plain(verdicts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {status}" for name, status in verdicts.items())


def _months(summary: Summary) -> Table:
    table = Table(title="January model → flywheel, on the same flights", title_style="bold")
    for name in ("month", "flights", "AUC", "gain", "log loss", "Brier", "versions"):
        table.add_column(name, justify="left" if name == "month" else "right")
    for month in summary.months:
        table.add_row(
            f"{month.month:02d}",
            f"{month.flights:,}",
            _pair(month, "auc"),
            _gain(month.flywheel.auc - month.static.auc),
            _pair(month, "log_loss"),
            _pair(month, "brier"),
            ", ".join(month.versions),
        )
    if len(summary.months) > 1:
        table.add_section()
        static, flywheel = (
            _mean([getattr(m, side) for m in summary.months]) for side in ("static", "flywheel")
        )
        mean = Month(0, sum(m.flights for m in summary.months), static, flywheel, ())
        table.add_row(
            "mean",
            f"{mean.flights:,}",
            _pair(mean, "auc"),
            _gain(mean.flywheel.auc - mean.static.auc),
            _pair(mean, "log_loss"),
            _pair(mean, "brier"),
            "",
        )
    return table


def _deployments(summary: Summary) -> Table:
    table = Table(
        title="Deployments, and what they cost",
        title_style="bold",
        caption="at the usual price of a cloud container",
    )
    for name in ("name", "mode", "status", "version"):
        table.add_column(name)
    for name in ("predictions", "CPU s", "$ per million"):
        table.add_column(name, justify="right")
    for d in summary.deployments:
        cost = summary.costs[d["name"]]
        dear = "" if cost.per_1k is None else f"{cost.per_1k * 1000:.2f}"
        counted = (f"{d['predictions']:,}", f"{cost.usage.cpu_seconds:,.0f}", dear)
        table.add_row(d["name"], d["mode"], d["status"], str(d["version"]), *counted)
    return table


def _actions(summary: Summary) -> Table:
    table = Table(title="What the loop did", title_style="bold", show_lines=True)
    for name in ("as of", "why", "gate"):
        table.add_column(name)
    for r in summary.retrainings:
        style = "green" if r.promoted else "yellow"
        table.add_row(f"{r.as_of:%d %b}", escape(r.reason), f"[{style}]{escape(r.said)}[/]")
    if not summary.retrainings:
        table.add_row("", "no retraining was called for", "")
    return table


def _pair(month: Month, metric: str) -> str:
    before, after = getattr(month.static, metric), getattr(month.flywheel, metric)
    better = after >= before if metric == "auc" else after <= before
    return f"[dim]{before:.3f}[/] → [{'green' if better else 'red'}]{after:.3f}[/]"


def _gain(value: float) -> str:
    return f"[{'green' if value >= 0 else 'red'}]{value:+.3f}[/]"


def _mean(scores: list[Scores]) -> Scores:
    n = len(scores)
    return Scores(*(sum(getattr(s, name) for s in scores) / n for name in ("auc", "log_loss", "brier")))
