"""Labels: what is accepted, from rows and from files, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.pipelines.feedback import FeedbackLog, parse_feedback, read_feedback_file


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


def _write(path: Path, columns: dict[str, list[Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(str(row).replace("'", '"') for row in rows) + "\n")
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_files_of_every_kind_give_the_same_labels(tmp_path: Path, ending: str) -> None:
    columns = {"prediction_id": ["001", "2"], "label": [1, 0], "note": ["x", "y"]}
    if ending == "csv":
        columns["prediction_id"] = ["001", "2"]  # must not become the number 1
    path = _write(tmp_path / f"labels.{ending}", columns)
    rows = [row for chunk in read_feedback_file(path) for row in chunk]
    assert rows == [{"prediction_id": "001", "label": 1}, {"prediction_id": "2", "label": 0}]


def test_files_that_cannot_be_labels_say_why(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        list(read_feedback_file(tmp_path / "none.csv"))
    with pytest.raises(BadInput, match="it needs label and"):
        list(read_feedback_file(_write(tmp_path / "a.csv", {"prediction_id": ["a"], "y": [1]})))
    with pytest.raises(BadInput, match="no known ending"):
        list(read_feedback_file(_write(tmp_path / "a.txt", {"prediction_id": ["a"]})))
