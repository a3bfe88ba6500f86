"""Making a reference: the sample that a version was validated on, with what that very version says about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput
from .model import Scorer, describe
from .schema import TIMESTAMP
from .training_files import EVENT_TIME, LABEL, PREDICTION, PREDICTION_PROBA

# Enough for the monitors' tests and for a first refit, small enough to be read in a moment.
MAX_ROWS = 20_000


def make_reference(scorer: Scorer, rows: pa.Table, *, max_rows: int = MAX_ROWS, seed: int = 0) -> pa.Table:
    """Return a seeded sample of labelled rows, in their order, with the scorer's predictions.

    `rows` has the features by name (none of them a name that references use: `check_feature_names`), `label`, and the
    event time where it is known; unlabelled rows are left out.
    Raises BadInput when rows do not fit the model, when none is labelled, or when labels are of another type than the
    model's predictions.
    """
    model = describe(scorer.ref)
    rows = rows.filter(pc.is_valid(rows[LABEL]))
    if rows.num_rows == 0:
        raise BadInput(f"the reference of {model} has no row with a label; give rows whose outcome is known")
    if rows.num_rows > max_rows:
        chosen = np.random.default_rng(seed).choice(rows.num_rows, size=max_rows, replace=False)
        rows = rows.take(pa.array(np.sort(chosen)))
    features = scorer.schema.from_table(rows)
    predictions = scorer.predict(features)
    table = features.append_column(PREDICTION, predictions.values)
    if predictions.proba is not None:
        table = table.append_column(PREDICTION_PROBA, predictions.proba)
    table = table.append_column(LABEL, labels_as_logged(rows[LABEL], scorer.kind, model))
    if EVENT_TIME in rows.column_names:
        table = table.append_column(EVENT_TIME, rows[EVENT_TIME].cast(TIMESTAMP))
    return table.combine_chunks()


def labels_as_logged(labels: pa.ChunkedArray, kind: str, model: str) -> pa.ChunkedArray:
    """Return labels in the type in which the inference table keeps predictions: double or string."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if kind == "string":
        return labels.cast(pa.string())
    if pa.types.is_boolean(labels.type):
        labels = labels.cast(pa.int8())
    if not (pa.types.is_integer(labels.type) or pa.types.is_floating(labels.type)):
        raise BadInput(f"{model} predicts numbers, but the labels of its reference are {labels.type}")
    return labels.cast(pa.float64())


def to_native(
    labels: pa.ChunkedArray, classes: Sequence[object] | None
) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """Return labels as the estimator was first fitted to them: its own class values, or numbers when it has none.

    A label that the estimator has never seen becomes a new class of the same type.
    """
    if classes is None:
        return np.asarray(labels.to_numpy(), dtype=np.float64)
    example = np.asarray(classes)
    values = labels.to_numpy()
    if example.dtype.kind == "b":
        return np.asarray([value in (1.0, True, "True", "true", "1") for value in values.tolist()])
    return np.asarray(values).astype(example.dtype if example.dtype.kind in "iuf" else object)
