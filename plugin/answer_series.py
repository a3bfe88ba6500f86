"""How often deployments fail over time, as a metric series of their runs in MLflow: a point for every ten minutes."""

from __future__ import annotations

from datetime import datetime

from .context import Context
from .series import add_points
from .usage_records import SLOT


def tell_answers(context: Context, end: datetime) -> None:
    """Add the point of the slot that ended then to each deployment that was asked anything in it."""
    for deployment in context.records.deployments():
        tally = context.records.answers_in(deployment.name, deployment.created, end - SLOT, end)
        if tally.asked:
            from mlflow import MlflowClient

            client = MlflowClient(context.home.tracking_uri)
            add_points(client, context.records, deployment, {"error_rate": tally.rate}, end)
