"""dlq, scale, replay: what is done to a deployment that reads a stream, while it reads on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, get_args

import click

from mlflow_flywheel.pipelines.config import StreamConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.stream.messages import Refusal
from mlflow_flywheel.plugin.backfill import backfill
from mlflow_flywheel.plugin.context import Context

from .common import command, find_deployment, print_json, print_table, time_of, waiting

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.stream.letters import LetterBox

_MOST = 1_000_000
_SHOWN = 10_000
_refusal = click.option("--refusal", type=click.Choice(get_args(Refusal)), help="only those refused for this")
_limit = click.option("--limit", type=click.IntRange(1, _MOST), help="at most so many  [default: all]")


class NameFirst(click.Group):
    """Takes NAME COMMAND for COMMAND NAME, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        return super().parse_args(ctx, args)


@click.group(cls=NameFirst)
def dlq() -> None:
    """The dead letters of a stream deployment: messages that it could not answer."""


@dlq.command("list")
@click.argument("name")
@_refusal
@click.option(
    "--limit", type=click.IntRange(1, _SHOWN), default=20, show_default=True, help="at most so many"
)
@command
def dlq_list(context: Context, as_json: bool, name: str, refusal: str | None, limit: int) -> None:
    """Show the oldest letters of deployment NAME, with the reason and the beginning of each."""
    with _letters(context, name, refusal) as box:
        found = [letter.to_dict() for letter in box.look(limit + 1)]
    more, letters = len(found) > limit, sorted(found[:limit], key=lambda letter: letter["refused"])
    if as_json:
        print_json({"deployment": name, "letters": letters, "more": more})
        return
    if not letters:
        click.echo(f"no dead letters of {name}")
        return
    columns = ["refused", "refusal", "reason", "origin", "payload"]
    rows = [
        (
            x["refused"],
            x["refusal"],
            x["reason"],
            x["origin_message_id"].rpartition("/")[2],
            x["payload"][:60],
        )
        for x in letters
    ]
    print_table(f"Dead letters of {name}", columns, rows)
    if more:
        click.echo(f"and more; --limit {min(10 * limit, _SHOWN)} shows them")


@dlq.command("replay")
@click.argument("name")
@_refusal
@_limit
@command
def dlq_replay(context: Context, as_json: bool, name: str, refusal: str | None, limit: int | None) -> None:
    """Send letters of deployment NAME back to its input topic, as messages of their own.

    Each gets a prediction_id of its own; its property `replayed_from` is the id of the message that was refused. Every
    deployment that reads the topic sees it. A letter is removed when its message is stored, so a crash in between
    sends it twice rather than never.
    """
    with _letters(context, name, refusal) as box:
        done = box.replay(limit or _MOST)
    if as_json:
        print_json({"deployment": name, "replayed": done.letters, "cut": done.cut})
        return
    click.echo(f"{done.letters:,} letters sent back")
    if done.cut:
        click.echo(f"{done.cut:,} stay: they were too big to be kept whole, so there is nothing to send back")


@dlq.command("purge")
@click.argument("name")
@_refusal
@_limit
@click.option("--yes", is_flag=True, help="do not ask")
@command
def dlq_purge(
    context: Context, as_json: bool, name: str, refusal: str | None, limit: int | None, yes: bool
) -> None:
    """Throw letters of deployment NAME away, those that are there now."""
    now = datetime.now(timezone.utc)
    stream_config(context, name)
    if not yes:
        which = f"those refused as {refusal}" if refusal else "all of them"
        click.confirm(f"Throw the dead letters of {name} away, {which}?", abort=True, err=True)
    with _letters(context, name, refusal) as box:
        gone = box.purge(limit or _MOST, now)
    if as_json:
        print_json({"deployment": name, "purged": gone})
    else:
        click.echo(f"{gone:,} letters thrown away")


@click.command()
@click.argument("name")
@click.argument("workers", type=click.IntRange(1, 64))
@command
def scale(context: Context, as_json: bool, name: str, workers: int) -> None:
    """Let N worker processes serve deployment NAME from now on; nothing is lost or answered twice meanwhile."""
    from mlflow_flywheel.plugin.operations import Operations

    record = find_deployment(context, name)
    if record.mode == "batch":
        raise BadInput(
            f"deployment {name!r} is a batch deployment: its runs use all cores, it has no workers"
        )
    with waiting(f"going over to {workers} workers"):
        Operations(context).update(name, config={"workers": str(workers)})
    if as_json:
        print_json({"deployment": name, "workers": workers})
    else:
        click.echo(f"{name} is served by {workers} worker{'s' if workers > 1 else ''} now")


@click.command()
@click.argument("name")
@click.option("--from", "start", metavar="ISO", required=True, help="first publish time")
@click.option("--to", "end", metavar="ISO", help="publish time after the last  [default: now]")
@command
def replay(context: Context, as_json: bool, name: str, start: str, end: str | None) -> None:
    """Score again what was published on the input topic of deployment NAME in a span of time.

    Events that the inference table has of this deployment are left as they are; the others are answered by the
    version in force and logged, under the prediction_id that they would have had anyway. It goes back as far as the
    broker keeps messages, and the workers go on meanwhile.
    """
    config = stream_config(context, name)
    now = datetime.now(timezone.utc)
    span = (time_of("--from", start), time_of("--to", end) if end else now)
    with context.changing(f"replay of {name}"), waiting(f"replaying {name}"):
        done = backfill(context, config, *span)
    if as_json:
        print_json({"deployment": name, **done})
        return
    click.echo(
        f"{done['messages']:,} events in the span: {done['answered']:,} answered, {done['known']:,} had been before, "
        f"{done['refused']:,} cannot be"
    )
    for refusal, count in done["refused_by"].items():
        click.echo(f"  {refusal}: {count:,}")


def stream_config(context: Context, name: str) -> StreamConfig:
    """Return what the workers of deployment NAME are told. Raises BadInput for one of another mode."""
    record = find_deployment(context, name)
    if record.mode != "stream":
        raise BadInput(
            f"deployment {name!r} is a {record.mode} deployment; only stream deployments read messages"
        )
    return load_config(StreamConfig, context.home.config_file(name))


@contextmanager
def _letters(context: Context, name: str, refusal: str | None) -> Iterator[LetterBox]:
    """Open the letters of a deployment, alone: two who look at once would each see some of them."""
    from mlflow_flywheel.pipelines.stream.letters import LetterBox

    config = stream_config(context, name)
    with (
        context.changing(f"letters of {name}"),
        waiting("asking the broker"),
        LetterBox(config, refusal) as box,
    ):
        yield box
