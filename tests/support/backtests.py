"""An inference table of logged rows and labels, and scorers made of formulas, for the back-test's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_flywheel.pipelines.backtest import Candidate
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import TIMESTAMP, Feature, FeatureSchema
from mlflow_flywheel.pipelines.training_window import TrainingWindow

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
UNKNOWN = TrainingWindow("nobody said so")


def day(number: float) -> datetime:
    return START + timedelta(days=number)


class LoggedRows:
    """A real table to which rows are appended as if deployments had logged them."""

    def __init__(self, folder: Path, kind: str = "double", model: str = "shop") -> None:
        self.table = InferenceTable.open(str(folder / "tables"), model)
        self.kind = kind
        self._commits = 0

    def log(
        self,
        features: Mapping[str, Any],
        labels: Sequence[Any] | None,
        times: Sequence[datetime],
        *,
        version: str = "1",
        ids: Sequence[str] | None = None,
        clients: Sequence[str | None] | None = None,
        variant: str = "champion",
        deployment: str = "web",
        label_delay: timedelta = timedelta(hours=1),
    ) -> list[str]:
        """Append rows and, for labels that are not None, their feedback; return the prediction ids."""
        n = len(times)
        self._commits += 1
        ids = list(ids) if ids is not None else [f"{self._commits}-{i}" for i in range(n)]
        value = pa.string() if self.kind == "string" else pa.float64()
        kinds = {
            name: "string" if np.asarray(v).dtype.kind in "UO" else "double" for name, v in features.items()
        }
        self.table.ensure(FeatureSchema([Feature(k, kind, False) for k, kind in kinds.items()]), self.kind)
        moments = pa.array(times, TIMESTAMP)
        rows: dict[str, Any] = {
            "prediction_id": ids,
            "client_request_id": pa.array(clients or [None] * n, pa.string()),
            "request_time": moments,
            "event_time": moments,
            "prediction": pa.nulls(n, value),
        }
        fixed = {"deployment": deployment, "mode": "web", "model_version": version, "variant": variant}
        rows |= {name: pa.array([text] * n, pa.string()) for name, text in fixed.items()}
        rows |= {f"feature.{name}": pa.array(values) for name, values in features.items()}
        self.table.append_predictions(pa.table(rows), {"test": self._commits})
        given = [i for i in range(n) if labels is not None and labels[i] is not None]
        if labels is not None and given:
            known = pa.array([times[i] + label_delay for i in given], TIMESTAMP)
            feedback = {
                "prediction_id": [ids[i] for i in given],
                "label": pa.array([labels[i] for i in given], value),
                "label_time": known,
                "received_time": known,
            }
            self.table.append_feedback(pa.table(feedback), {"test": self._commits})
        return ids


def candidate(
    formula: Callable[[Any], tuple[Any, Any]],
    *features: str | Feature,
    classes: tuple[str, ...] | None = None,
    kind: str = "double",
    version: str = "7",
    training: TrainingWindow = UNKNOWN,
) -> Candidate:
    """Return a candidate that answers what `formula` makes of a frame: values and probabilities (or None)."""
    schema = FeatureSchema([f if isinstance(f, Feature) else Feature(f, "double") for f in features])
    ref = ModelRef(name="shop", version=version, path="")
    scorer = Scorer(ref, schema, lambda frame, params: formula(frame), classes, None, kind, object())
    return Candidate(version, scorer, training)


def logistic(weight: float = 1.0, column: str = "a") -> Callable[[Any], tuple[Any, Any]]:
    """Return a formula of two classes, 0 and 1."""

    def answer(frame: Any) -> tuple[Any, Any]:
        positive = 1 / (1 + np.exp(-weight * frame[column].to_numpy()))
        return (positive > 0.5).astype(float), np.column_stack([1 - positive, positive])

    return answer
