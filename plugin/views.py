"""Deployments as people and scripts see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .context import Context
from .modes import mode_operations
from .record_types import DeploymentRecord
from .spec_reading import parse_spec


def deployment_view(
    context: Context, record: DeploymentRecord, predictions: int | None = None
) -> dict[str, Any]:
    """Return a deployment as a JSON-ready dict; `name` and `flavor` are what MLflow's own command prints.

    `predictions` is counted when it is not given, which reads the inference table.
    """
    if predictions is None:
        predictions = predictions_of(context, record.model_name).get(record.name, 0)
    mode = mode_operations(record.mode)
    return {
        "name": record.name,
        "mode": record.mode,
        "flavor": record.flavor,
        "status": mode.state(context, record) if record.status == "ready" else record.status,
        "model_uri": record.model_uri,
        "model_name": record.model_name,
        "version": record.version,
        "model_id": record.model_id,
        **mode.places(context, record, parse_spec(record.config)),
        "predictions": predictions,
        "config": dict(record.config),
        "message": record.message,
        "run_id": record.run_id,
        "created": record.created.isoformat(),
        "updated": record.updated.isoformat(),
    }


def deployment_views(context: Context, records: Sequence[DeploymentRecord]) -> list[dict[str, Any]]:
    """Return several deployments, reading each model's inference table once."""
    counts = {model: predictions_of(context, model) for model in {record.model_name for record in records}}
    return [deployment_view(context, r, counts[r.model_name].get(r.name, 0)) for r in records]


def predictions_of(context: Context, model_name: str) -> dict[str, int]:
    """Return how many predictions of a model are in its inference table, by deployment."""
    from mlflow_flywheel.pipelines.inference_table import InferenceTable

    table = InferenceTable.open(context.home.tables, model_name)
    return table.answered() if table.exists else {}
