"""reproduce: a retraining done again, to see that it comes out the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlflow_flywheel.pipelines.errors import ModelError
from mlflow_flywheel.plugin.context import Context

from .common import command, print_json, print_table, waiting

if TYPE_CHECKING:
    from mlflow_flywheel.plugin.reproduction import Reproduction


@click.command()
@click.argument("run_id")
@command
def reproduce(context: Context, as_json: bool, run_id: str) -> None:
    """Do the retraining of RUN_ID again from what it recorded.

    The training set must be equal, hash by hash; the metrics on the same hold-out are compared. Nothing is registered.
    """
    from mlflow_flywheel.plugin.reproduction import reproduce as reproduce_run

    with waiting(f"training again as run {run_id} did"):
        found = reproduce_run(context, run_id)
    if as_json:
        metrics = {name: {"then": then, "now": now} for name, (then, now) in found.metrics.items()}
        print_json(
            {
                "run_id": found.run_id,
                "again": found.again,
                "train_hash": found.lineage.train_hash,
                "holdout_hash": found.lineage.holdout_hash,
                "metrics": metrics,
                "window": {"then": found.window[0], "now": found.window[1]},
                "code_hash": {"then": found.code[0], "now": found.code[1]},
                "equal": found.equal,
            }
        )
    else:
        rows = [(name, then, now) for name, (then, now) in found.metrics.items()]
        print_table(f"Run {run_id} again", ["metric", "then", "now"], rows)
        lineage = found.lineage
        click.echo(
            f"the same {lineage.train_rows:,} training rows ({lineage.train_hash[:12]}) and "
            f"{lineage.holdout_rows_found:,} held-out ones ({lineage.holdout_hash[:12]}); run {found.again}"
        )
        if any(found.window):
            click.echo(f"training window: {found.window[0]} then, {found.window[1]} now")
        if found.other_code and found.equal:
            click.echo(f"note: {_other_code(found)}")
    if not found.equal:
        raise ModelError(f"it came out otherwise: {_why(found)}")


def _why(found: Reproduction) -> str:
    """Say what may have made the difference."""
    others = [f"{name} {then} then, {now} now" for name, (then, now) in found.other_versions.items()]
    known = ([_other_code(found)] if found.other_code else []) + others
    return "; ".join(known) or "what was trained depends on more than rows, code, versions and seed"


def _other_code(found: Reproduction) -> str:
    """Say what is known of the user's own code."""
    project = found.lineage.project
    assert project is not None
    then, now = (code[:12] or "too large to tell" for code in found.code)
    return (
        f"the code of {project.uri!r} is not known to be what it was (its hash was {then}, now {now}); a project in git "
        "without uncommitted changes is checked out as it was"
    )
