"""adjust: how the live adjustment of a stream deployment does, and the way back to the model itself."""

from __future__ import annotations

import time

import click

from mlflow_flywheel.pipelines.adjust.status import AdjustmentStatus
from mlflow_flywheel.pipelines.adjust.trust import LEAST_ROWS
from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.stream.adjusting import reset_file
from mlflow_flywheel.pipelines.stream.stats import read_stats
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin.context import Context

from .common import command, print_json, print_table, waiting
from .streams import NameFirst, stream_config

_RESET_SECONDS = 15.0
_POLL_SECONDS = 0.05


@click.group(cls=NameFirst)
def adjust() -> None:
    """The live adjustment of a stream deployment (-C adjust=bias | recalibrate | partial_fit)."""


@adjust.command("status")
@click.argument("name")
@command
def adjust_status(context: Context, as_json: bool, name: str) -> None:
    """Show what the adjustment of deployment NAME does to predictions, what it learnt from, and what it gains."""
    config = _adjusted_config(context, name)
    stats = read_stats(config.status_file)
    known = None if stats is None else stats.adjustment
    if as_json:
        print_json({"deployment": name, "adjustment": None if known is None else _plain(known)})
    elif stats is None or known is None:
        click.echo(f"{name} has said nothing of its adjustment yet; 'flywheel status' shows whether it works")
    else:
        rows = [
            ("id in every row", known.id),
            ("now", _now(known)),
            ("learnt", ", ".join(f"{key} {value:g}" for key, value in known.parameters.items())),
            (
                "moves by at most",
                "unknown yet" if known.limit is None else f"{known.limit:.4g} ({known.unit})",
            ),
            ("since", f"{known.since.isoformat(timespec='seconds')}, {known.labels:,} labels"),
            ("remembers", f"{known.rows:,} labelled rows, {known.waiting:,} that wait for a label"),
            (
                "labels it could not use",
                f"{known.unknown:,} of unknown rows, {known.unusable:,} of unknown value",
            ),
            *((f"{known.loss}, {whose}", f"{loss:.5g}") for whose, loss in known.losses().items()),
            (
                "gain",
                "unknown yet" if known.gain is None else f"{known.gain:+.2%} over {known.judged} labels",
            ),
        ]
        print_table(f"Adjustment of {name}", ["", known.method], rows)
        if not stats.is_current(utc_now()):
            click.echo(
                f"that was at {stats.updated.isoformat(timespec='seconds')}; its worker is silent since"
            )


@adjust.command("reset")
@click.argument("name")
@command
def adjust_reset(context: Context, as_json: bool, name: str) -> None:
    """Let deployment NAME answer as its model does, and let its adjustment begin anew."""
    config = _adjusted_config(context, name)
    wish = reset_file(config.status_file)
    wish.touch(mode=0o600)
    deadline = time.monotonic() + _RESET_SECONDS
    with waiting(f"resetting the adjustment of {name}"):
        while wish.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    done = not wish.exists()
    if as_json:
        print_json({"deployment": name, "reset": done})
    elif done:
        click.echo(f"{name} answers as its model does; its adjustment begins anew")
    else:
        click.echo(
            f"{name} does not work now ('flywheel status'); its adjustment begins anew as soon as it does"
        )


def _adjusted_config(context: Context, name: str) -> StreamConfig:
    config = stream_config(context, name)
    if config.adjust == "off":
        raise BadInput(
            f"deployment {name!r} has no live adjustment; 'mlflow deployments update -t flywheel --name {name} "
            "-C adjust=bias' (or recalibrate, or partial_fit) gives it one"
        )
    return config


def _plain(known: AdjustmentStatus) -> dict[str, object]:
    return {**known.model_dump(mode="json"), "gain": known.gain}


def _now(known: AdjustmentStatus) -> str:
    if known.judged < LEAST_ROWS:
        return f"the model's own predictions are answered: {LEAST_ROWS} labels are needed to judge"
    how = f"its proposals were better by {known.evidence:.1f} standard errors over {known.judged} labels"
    if known.active:
        return f"predictions are adjusted: {how}"
    return f"the model's own predictions are answered: {how}"
