"""A scikit-learn model that goes on learning: its last step is fitted to each label that comes.

The steps before it stay as they were trained. How fast it learns is the estimator's own matter (its learning rate, or
how many rows it has seen); that it stays near what it was trained to say is not: the caller bounds each prediction.
"""

from __future__ import annotations

import base64
import copy
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_flywheel.pipelines.schema import TIMESTAMP, FeatureSchema

from .rows import Floats, Labelled, Sample


class PartialFit:
    """A copy of an estimator that learns from labelled rows; `classes` of a classifier, in the order of its own."""

    name = "partial_fit"
    needs_features = True

    def __init__(self, estimator: Any, schema: FeatureSchema, classes: Sequence[Any] | None) -> None:
        steps = getattr(estimator, "steps", None)
        self._before = estimator[:-1] if steps is not None and len(steps) > 1 else None
        self._original = steps[-1][1] if steps is not None else estimator
        self._schema = schema
        self._classes = None if classes is None else np.asarray(classes)
        self._labels = 0
        self._copy: Any = None
        self.load(None)

    def propose(self, raw: Floats, features: pa.RecordBatch | pa.Table) -> Floats:
        if self._labels == 0:
            return raw
        return self.predicted(features)

    def predicted(self, features: pa.RecordBatch | pa.Table) -> Floats:
        """Return what the copy says."""
        inputs = self._inputs(features)
        if self._classes is not None:
            return np.asarray(self._copy.predict_proba(inputs), np.float64)
        return np.asarray(self._copy.predict(inputs), np.float64).reshape(-1, 1)

    def learn(self, sample: Sample, fresh: Sequence[Labelled]) -> None:
        if not fresh:
            return
        rows = [each.row.features for each in fresh]
        columns = list(zip(*rows, strict=True))
        arrays = [
            pa.array(values, pa.int64()).cast(TIMESTAMP)
            if feature.type == "datetime"
            else pa.array(values, feature.arrow_type)
            for feature, values in zip(self._schema.features, columns, strict=True)
        ]
        truths: Any = np.array([each.truth for each in fresh])
        if self._classes is not None:
            truths = self._classes[truths.astype(np.int64)]
        learner = copy.deepcopy(self._copy)  # one that fails half way leaves nothing behind
        learner.partial_fit(
            self._inputs(pa.RecordBatch.from_arrays(arrays, schema=self._schema.arrow)), truths
        )
        self._copy = learner
        self._labels += len(fresh)

    def effect(self) -> str:
        return "on"

    def parameters(self) -> dict[str, float]:
        return {"fitted_labels": self._labels}

    def dump(self) -> Any:
        return {"labels": self._labels, "estimator": base64.b64encode(pickle.dumps(self._copy)).decode()}

    def load(self, state: Any) -> None:
        if state is None:
            self._labels = 0
            self._copy = copy.deepcopy(self._original)
            if getattr(self._copy, "random_state", 0) is None:
                self._copy.random_state = 0  # or the same labels would give another state after a restart
        else:
            self._labels = int(state["labels"])
            self._copy = pickle.loads(base64.b64decode(state["estimator"]))

    def _inputs(self, features: pa.RecordBatch | pa.Table) -> Any:
        frame = self._schema.to_frame(features)
        return frame if self._before is None else self._before.transform(frame)
