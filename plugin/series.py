"""The long-lived run of a deployment in MLflow, whose metric series are its dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_flywheel.monitors.reporting import deployment_run, log_deployment_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .record_types import DeploymentRecord
    from .records import Records


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
    """Remember which run has the series of a deployment. Raises NotFound when that was deleted meanwhile."""
    if deployment.run_id != run_id:
        records.update_deployment(deployment.name, run_id=run_id)
