"""Labels: what is accepted, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.feedback import FeedbackLog, parse_feedback


@pytest.mark.parametrize(
    ("label", "kind", "kept"),
    [
        (1, "double", 1.0),
        (True, "double", 1.0),
        ("false", "double", 0.0),
        ("0.5", "double", 0.5),
        (2.0, "string", "2"),
        ("a", "string", "a"),
    ],
)
def test_labels_take_the_type_of_the_predictions(label: Any, kind: str, kept: Any) -> None:
    assert parse_feedback({"prediction_id": "p", "label": label}, kind)["label"] == kept


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"label": 1}, "give prediction_id or client_request_id"),
        ({"prediction_id": "p"}, "label is missing"),
        ({"prediction_id": "p", "label": "late"}, "label must be a number"),
        ({"prediction_id": "p", "label": float("inf")}, "label must be finite"),
        ({"prediction_id": 5, "label": 1}, "prediction_id must be a non-empty string"),
        ({"prediction_id": "p", "label": 1, "label_tine": "x"}, "did you mean 'label_time'"),
        ({"prediction_id": "p", "label": 1, "label_time": "noon"}, "label_time must be ISO 8601"),
        ({"prediction_id": "p", "label": 1, "source": {"a": 1}}, "source must be a string"),
        (["p", 1], "must be an object"),
    ],
)
def test_a_bad_label_is_named_with_its_row(row: Any, complaint: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_feedback(row, "double", 7)
    assert "row 7" in caught.value.message
    assert complaint in caught.value.message


def test_one_bad_row_keeps_nothing_of_its_request(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path, "m", "double", source="test")
    with pytest.raises(BadInput):
        log.submit([{"prediction_id": "a", "label": 1}, {"prediction_id": "b"}])
    log.close()
    assert not list(tmp_path.rglob("*.seg"))
