"""Labels on their way between the table, the files and an estimator."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from support.cores import tiny_scorer

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.reference_file import labels_as_logged, make_reference, to_native


def chunked(*values: object) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(values))])


@pytest.mark.parametrize(
    ("classes", "logged", "native"),
    [
        (np.array([0, 1]), chunked(1.0, 0.0), np.array([1, 0])),
        (np.array([False, True]), chunked(1.0, 0.0), np.array([True, False])),
        (np.array(["no", "yes"]), chunked("yes", "no"), np.array(["yes", "no"], dtype=object)),
        (
            np.array(["no", "yes"], dtype=object),
            chunked("yes", "new"),
            np.array(["yes", "new"], dtype=object),
        ),
        (np.array([0.5, 1.5]), chunked(1.5), np.array([1.5])),
        (None, chunked(3.0, 2.5), np.array([3.0, 2.5])),
    ],
)
def test_labels_come_back_in_the_types_that_the_estimator_knows(
    classes: np.ndarray[tuple[int], np.dtype[np.generic]] | None,
    logged: pa.ChunkedArray,
    native: np.ndarray[tuple[int], np.dtype[np.generic]],
) -> None:
    found = to_native(logged, classes)
    assert found.dtype == native.dtype and found.tolist() == native.tolist()


def test_labels_are_kept_in_the_type_of_the_predictions() -> None:
    assert labels_as_logged(chunked(True, False), "double", "m").to_pylist() == [1.0, 0.0]
    assert labels_as_logged(chunked(3, 4), "string", "m").to_pylist() == ["3", "4"]
    assert labels_as_logged(chunked("a", "b").dictionary_encode(), "string", "m").to_pylist() == ["a", "b"]
    with pytest.raises(BadInput, match="predicts numbers"):
        labels_as_logged(chunked("a"), "double", "m")


def test_a_reference_has_what_the_model_says_and_only_labelled_rows() -> None:
    rows = pa.table(
        {"x": [1.0, -1.0, 2.0], "city": ["a", None, "b"], "label": [1, 0, None], "more": [1, 2, 3]}
    )
    made = make_reference(tiny_scorer(), rows)
    assert made.column_names == ["x", "city", "prediction", "prediction_proba", "label"]
    assert made["prediction"].to_pylist() == [1.0, 0.0] and made["label"].to_pylist() == [1.0, 0.0]
