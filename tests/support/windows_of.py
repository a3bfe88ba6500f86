"""Windows of an inference table and references, made of plain columns, for the monitors' tests."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.monitors.windows import Window

START = datetime(2013, 2, 1, tzinfo=timezone.utc)
WINDOW = Window(START, START + timedelta(days=28))


def times(n: int) -> pa.Array:
    """Return n moments, evenly over the window."""
    micros = int(START.timestamp() * 1e6) + np.arange(n) * int(28 * 86_400e6) // max(1, n)
    return pa.array(micros, pa.timestamp("us", tz="UTC"))


def probabilities(matrix: Any) -> pa.Array:
    """Return class probabilities as the table keeps them."""
    matrix = np.ascontiguousarray(matrix, dtype=np.float64)
    offsets = np.arange(0, matrix.size + 1, matrix.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.ravel()))


def two_classes(positive: Any) -> pa.Array:
    """Return the probabilities of a binary classifier from those of its positive class."""
    positive = np.asarray(positive, dtype=np.float64)
    return probabilities(np.column_stack([1 - positive, positive]))


def window_of(features: Mapping[str, Any], **own: Any) -> pa.Table:
    """Return a window: features as `feature.<name>`, own columns as given, event times over the window."""
    columns = {f"feature.{name}": values for name, values in features.items()} | own
    n = len(next(iter(columns.values()))) if columns else 0
    return pa.table({"event_time": times(n), **columns})


def reference_of(features: Mapping[str, Any], **own: Any) -> Reference:
    """Return a reference: features by plain name, own columns as given."""
    return Reference(pa.table({**features, **own}))
