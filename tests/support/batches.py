"""Batch jobs in a temporary folder, and a scorer that needs no MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.config import BatchConfig, ModelRef
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

REF = ModelRef(name="sum", version="1", path="/nowhere")
FEATURES = (Feature("x", "double"), Feature("n", "long"), Feature("kind", "string", required=False))


def sum_scorer(features: tuple[Feature, ...] = FEATURES, ref: ModelRef = REF, factor: float = 1.0) -> Scorer:
    """Return a scorer that adds the numeric features of a row up."""

    def call(frame: pd.DataFrame, params: Mapping[str, Any] | None) -> tuple[Any, Any]:
        if "fail" in frame and (frame["fail"] > 0).any():
            raise RuntimeError("asked to fail")
        return frame.select_dtypes("number").sum(axis=1).to_numpy() * factor, None

    return Scorer(ref, FeatureSchema(features), call, None, None, "double", None)


def sum_rows(n: int, first: int = 0) -> pa.Table:
    """Return n rows that fit the features above, with two columns more."""
    numbers = range(first, first + n)
    return pa.table(
        {
            "key": pa.array([f"k{i:04}" for i in numbers]),
            "x": pa.array([None if i % 7 == 3 else i / 4 for i in numbers], pa.float64()),
            "n": pa.array(numbers, pa.int64()),
            "kind": pa.array([None if i % 5 == 2 else "ab"[i % 2] for i in numbers]),
            "when": pa.array([1_357_000_000_000_000 + i * 60_000_000 for i in numbers]).cast(
                pa.timestamp("us", tz="UTC")
            ),
        }
    )


def batch_config(folder: Path, **changes: Any) -> BatchConfig:
    """Return a job that reads `in`, writes `out` and keeps its state and tables under `folder`."""
    fields: dict[str, Any] = {
        "deployment": "nightly",
        "model": REF,
        "tables": str(folder / "tables"),
        "state_dir": str(folder / "state"),
        "job_id": "job-1",
        "input": str(folder / "in"),
        "output": str(folder / "out"),
    }
    return BatchConfig(**{**fields, **changes})


def logged(config: BatchConfig) -> pa.Table:
    """Return what the inference table has, by prediction id."""
    return InferenceTable.open(config.tables, config.model.name).read(order_by="prediction_id")


def answers(folder: Path) -> pa.Table:
    """Return all rows of all Parquet files under a folder, file by file."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))])
