"""The time that counts as now for a model: the present, or in a replay of old events where these end."""

from __future__ import annotations

from datetime import datetime, timedelta

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.times import utc_now


def event_now(tables: str, model: str, policy: PolicySpec) -> datetime:
    """Return now, or just after the newest event when that is older than anything that would be trained on."""
    now = utc_now()
    table = InferenceTable.open(tables, model)
    newest = table.watermark() if table.exists else None
    replayed = newest is not None and newest < now - policy.training_window
    return newest + timedelta(seconds=1) if newest is not None and replayed else now
