"""A scoring core without MLflow: for tests of what surrounds the model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.ids import new_prediction_ids
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.scoring import PredictionLog, Request, ScoredBatch, ScoringCore
from mlflow_flywheel.pipelines.table_columns import rows_for

SCHEMA = FeatureSchema([Feature("x", "double"), Feature("city", "string")])
NAME = "tiny"


def tiny_scorer(version: str = "1") -> Scorer:
    """Return a scorer that says 1 where x > 0, with logistic probabilities."""

    def call(frame: Any, params: Any) -> tuple[Any, Any]:
        high = 1 / (1 + np.exp(-frame["x"].to_numpy()))
        return (high > 0.5).astype(int), np.column_stack([1 - high, high])

    return Scorer(
        ModelRef(name=NAME, version=version, model_id=None, path=""),
        SCHEMA,
        call,
        ("0", "1"),
        None,
        "double",
        None,
    )


def tiny_core(
    log: PredictionLog, *, deployment: str = "tiny-web", mode: str = "web", version: str = "1"
) -> ScoringCore:
    return ScoringCore(tiny_scorer(version), deployment=deployment, mode=mode, log=log)


def tiny_request(
    n: int,
    ids: Sequence[str] | None = None,
    clients: Sequence[str | None] | None = None,
    event_times: Sequence[datetime | None] | None = None,
) -> Request:
    records = [{"x": i - n / 2, "city": None if i % 3 == 0 else f"city-{i % 3}"} for i in range(n)]
    return Request(SCHEMA.from_records(records), ids or new_prediction_ids(n), clients, event_times)


class DirectLog:
    """A log whose every append is a commit of the table, as a batch job makes them."""

    def __init__(self, table: InferenceTable, app: str, next_version: int = 0) -> None:
        self._table = table
        self._app = app
        self._next = next_version

    def append(self, batch: ScoredBatch) -> None:
        commit = self._table.predictions.growing_commit(f"{self._app}-{self._next}", self._app, self._next)
        commit.write(rows_for(batch.rows, self._table.predictions.schema()))
        commit.commit()
        self._next += 1
