"""The long-lived run of a deployment in MLflow, whose metric series are its dashboard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_flywheel.monitors.ended_run import end_deployment_run
from mlflow_flywheel.monitors.reporting import deployment_run, log_deployment_metrics
from mlflow_flywheel.pipelines.errors import NotFound

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .context import Context
    from .record_types import DeploymentRecord
    from .records import Records

_log = logging.getLogger(__name__)


def add_points(
    client: MlflowClient,
    records: Records,
    deployment: DeploymentRecord,
    points: Mapping[str, float],
    moment: datetime,
) -> None:
    """Add a point to each series of a deployment, at an event time, and remember which run has them."""
    run_id = deployment_run(client, deployment.model_name, deployment.name, deployment.mode)
    remember_run(records, deployment, run_id)
    log_deployment_metrics(client, run_id, points, moment)


def remember_run(records: Records, deployment: DeploymentRecord, run_id: str) -> None:
    """Remember which run has the series of a deployment; one that had them before, of another model, is over.

    Raises NotFound when the deployment was deleted meanwhile: then this run is over too.
    """
    if deployment.run_id == run_id:
        return
    try:
        records.update_deployment(deployment.name, run_id=run_id)
    except NotFound:
        records.end_run(run_id)
        raise
    if deployment.run_id is not None:
        records.end_run(deployment.run_id)


def end_runs(context: Context) -> None:
    """Tell MLflow which deployments' runs are over. Raises Unavailable while it is away."""
    for run_id, status, ended in context.records.ended_runs():
        from mlflow import MlflowClient

        try:
            end_deployment_run(MlflowClient(context.home.tracking_uri), run_id, status, ended)
        except NotFound as error:
            _log.warning("%s", error.message)
        context.records.forget_ended_run(run_id)
