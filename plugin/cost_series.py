"""What deployments cost over time, as metric series of their runs in MLflow: a point for every ten minutes that ended."""

from __future__ import annotations

from datetime import datetime, timedelta

from mlflow_flywheel.pipelines.times import utc_now

from .context import Context
from .cost import DeploymentCost, cost_report
from .series import add_points
from .usage_records import SLOT, slot_of

# A row is in the inference table some seconds after its answer.
_SETTLED = SLOT / 5
_LOOKS_BACK = timedelta(days=1)


class CostSeries:
    """Adds the points that have become due when it is called; a point that is written again is the same point."""

    def __init__(self) -> None:
        self._told: datetime | None = None

    def log(self, context: Context) -> None:
        """Tell every slot that has ended since the last call, at first the newest alone.

        Raises Unavailable when MLflow is away; then they are told later, those of the last day at least.
        """
        newest = slot_of(utc_now() - _SETTLED)
        end = newest if self._told is None else max(self._told + SLOT, newest - _LOOKS_BACK)
        while end <= newest:
            _tell(context, end)
            self._told = end
            end += SLOT


def _tell(context: Context, end: datetime) -> None:
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
