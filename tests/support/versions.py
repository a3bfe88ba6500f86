"""Versions of a small model, made in memory, and what they answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

from .windows_of import times, two_classes


def classifier(slope: float, feature: str = "x", noise: int | None = None) -> Scorer:
    """Return a logistic model of one feature; the world of these tests has the slope 2."""

    def call(frame: pd.DataFrame, params: object) -> tuple[Any, Any]:
        z = slope * frame[feature].to_numpy()
        if noise is not None:
            z = z + 0.3 * np.random.default_rng(noise).normal(size=len(z))
        one = 1 / (1 + np.exp(-z))
        return (one > 0.5).astype(float), np.column_stack([1 - one, one])

    schema = FeatureSchema([Feature(feature, "double")])
    return Scorer(ModelRef(name="m", version="1", path=""), schema, call, ("0", "1"), None, "double", None)


def answered(by: Scorer, n: int = 2000, seed: int = 0) -> pa.Table:
    """Return labelled rows of four weeks, as a version answered them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    said = by.predict(pa.table({"x": x}))
    assert said.proba is not None
    proba = np.asarray(said.proba.flatten()).reshape(n, 2)
    return pa.table(
        {
            "event_time": times(n),
            "feature.x": x,
            "label": (rng.random(n) < 1 / (1 + np.exp(-2 * x))).astype(float),
            "prediction": said.values,
            "prediction_proba": two_classes(proba[:, 1]),
        }
    )
