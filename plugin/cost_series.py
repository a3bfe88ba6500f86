"""What deployments cost over time, as metric series of their runs in MLflow: a point for every ten minutes that ended."""

from __future__ import annotations

from datetime import datetime

from .context import Context
from .cost import DeploymentCost, cost_report
from .series import add_points
from .usage_records import SLOT


def tell_costs(context: Context, end: datetime) -> None:
    """Add the point of the slot that ended then to each deployment that used anything in it."""
    for cost in cost_report(context, end - SLOT, end).deployments:
        points = _points(cost)
        if points:
            from mlflow import MlflowClient

            deployment = context.records.deployment(cost.deployment)
            add_points(MlflowClient(context.home.tracking_uri), context.records, deployment, points, end)


def _points(cost: DeploymentCost) -> dict[str, float]:
    """Return the point of one deployment; a batch deployment has points where it ran."""
    seconds = SLOT.total_seconds()
    if cost.mode == "batch" and not cost.runs or cost.mode != "batch" and not cost.usage.up_seconds:
        return {}
    point = {"cost_per_hour": cost.cost * 3600 / seconds, "cpu_cores": cost.usage.cpu_seconds / seconds}
    if cost.usage.up_seconds:
        point["memory_gb"] = cost.usage.gb_seconds / cost.usage.up_seconds
    if cost.per_1k is not None:
        point["cost_per_1k_predictions"] = cost.per_1k
    return point
