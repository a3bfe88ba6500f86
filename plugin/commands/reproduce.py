"""reproduce: a retraining done again, to see that it comes out the same."""

from __future__ import annotations

import click

from mlflow_flywheel.pipelines.errors import ModelError
from mlflow_flywheel.plugin.context import Context

from .common import command, print_json, print_table, waiting


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
    if not found.equal:
        raise ModelError("the metrics differ: what was trained depends on more than rows, code and seed")
