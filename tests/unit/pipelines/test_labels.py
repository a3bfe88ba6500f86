"""Labels from files: what is read of each format, where a row that is none stands, and that a file is taken once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.batch.inputs import InputFile, find_inputs
from mlflow_flywheel.pipelines.batch.rejects import RejectsFile
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.feedback import check_label
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.labels.checking import Checked, LabelCheck
from mlflow_flywheel.pipelines.labels.reading import Piece, read_labels
from mlflow_flywheel.pipelines.labels.taking import Taken, take_label_file
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

RECEIVED = 1_700_000_000_000_000


def file_of(path: Path, content: str | bytes) -> InputFile:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (found,) = find_inputs(str(path))
    return found


def parquet_of(path: Path, columns: dict[str, Any]) -> InputFile:
    pq.write_table(pa.table(columns), path)
    (found,) = find_inputs(str(path))
    return found


def checked(file: InputFile, kind: str = "double") -> Checked:
    """Return what all pieces of a file hold."""
    check = LabelCheck(kind, "test")
    found = [check.check(piece, RECEIVED) for piece in read_labels(file)]
    return Checked(
        pa.concat_tables([each.rows for each in found]), [m for each in found for m in each.misfits]
    )


def labels(file: InputFile, kind: str = "double") -> list[tuple[Any, ...]]:
    found = checked(file, kind)
    assert not found.misfits
    rows = found.rows.to_pylist()
    return [(row["prediction_id"], row["client_request_id"], row["label"]) for row in rows]


def test_files_of_every_kind_give_the_same_labels(tmp_path: Path) -> None:
    """An id stays text, other columns are passed over, and the more exact id goes before the other."""
    wanted = [("001", None, 1.0), ("2", None, 0.0), (None, "ü,x", 1.0)]
    csv = 'prediction_id,note,client_request_id,label\n001,x,,1\n2,,c,0\n,,"ü,x",true\n'
    lines = [
        {"prediction_id": "001", "label": 1, "note": {"a": []}},
        {"prediction_id": "2", "client_request_id": "c", "label": 0.0},
        {"client_request_id": "ü,x", "label": True},
    ]
    ids = {"prediction_id": ["001", "2", None], "client_request_id": [None, "c", "ü,x"]}
    jsonl = b"\n".join(map(orjson.dumps, lines))
    assert labels(file_of(tmp_path / "a.csv", "\ufeff" + csv)) == wanted
    assert labels(file_of(tmp_path / "a.csv.gz", gzip.compress(csv.replace("\n", "\r\n").encode()))) == wanted
    assert labels(file_of(tmp_path / "a.jsonl", jsonl)) == wanted
    assert labels(file_of(tmp_path / "a.jsonl.gz", gzip.compress(jsonl))) == wanted
    assert labels(parquet_of(tmp_path / "a.parquet", {**ids, "label": [1, 0, 1], "x": [[1]] * 3})) == wanted


def test_labels_of_classes_are_text_as_it_is_written(tmp_path: Path) -> None:
    csv = file_of(tmp_path / "a.csv", "prediction_id,label\na,01\nb,true\n")
    assert [label for *_, label in labels(csv, "string")] == ["01", "true"]
    whole = parquet_of(tmp_path / "a.parquet", {"prediction_id": ["a", "b"], "label": [2.0, 3.0]})
    assert [label for *_, label in labels(whole, "string")] == ["2", "3"]


def test_times_with_and_without_a_zone_and_none(tmp_path: Path) -> None:
    noon = datetime(2013, 2, 1, 12, tzinfo=timezone.utc)
    given = ["2013-02-01T12:00:00Z", "2013-02-01 13:00:00+01:00", "2013-02-01T12:00", "", "20130201T12"]
    text = "".join(f"p{i},1,{time}\n" for i, time in enumerate(given))
    times = checked(file_of(tmp_path / "a.csv", f"prediction_id,label,label_time\n{text}")).rows
    received = times["received_time"].to_pylist()
    assert times["label_time"].to_pylist() == [noon, noon, noon, received[3], noon]
    assert [int(moment.timestamp() * 1e6) - RECEIVED for moment in received] == [0, 1, 2, 3, 4]
    naive = datetime(2013, 2, 1, 12)
    for values in (pa.array([naive]), pa.array([naive], pa.timestamp("ns", "UTC")), [1359720000000]):
        columns = {"prediction_id": ["p"], "label": [1], "label_time": values}
        assert checked(parquet_of(tmp_path / "a.parquet", columns)).rows["label_time"].to_pylist() == [noon]


def test_rows_that_are_none_are_named_by_their_line_and_the_others_kept(tmp_path: Path) -> None:
    csv = file_of(
        tmp_path / "a.csv",
        'prediction_id,label,label_time\na,1,\n\n"b\nb",0,\nc,late,\nd,1\n,1,\ne,1,noon\nf,inf,\ng,0,\n',
    )
    found = checked(csv)
    assert found.rows["prediction_id"].to_pylist() == ["a", "b\nb", "g"]
    assert [(m.place, m.reason.partition(",")[0]) for m in found.misfits] == [
        (6, "label must be a number"),
        (7, "must have 3 values"),
        (8, "give prediction_id or client_request_id"),
        (9, "label_time must be ISO 8601"),
        (10, "label must be finite"),
    ]
    assert found.misfits[0].record == {"prediction_id": "c", "label": "late"}
    jsonl = file_of(
        tmp_path / "a.jsonl",
        '{"prediction_id": "a", "label": 1}\n\n[1]\n{"prediction_id": 5, "label": 1}\n{"pred\n'
        '{"prediction_id": "b", "label": "0"}\n',
    )
    found = checked(jsonl)
    assert found.rows["label"].to_pylist() == [1.0, 0.0]
    assert [m.place for m in found.misfits] == [3, 4, 5]
    assert "non-empty string, got 5" in found.misfits[1].reason and "no JSON" in found.misfits[2].reason
    parquet = parquet_of(
        tmp_path / "a.parquet", {"prediction_id": ["a", "", "b"], "label": [1.0, 1.0, float("nan")]}
    )
    assert [(m.place, m.reason.partition(",")[0]) for m in checked(parquet).misfits] == [
        (2, "prediction_id must be a non-empty string"),
        (3, "label must be finite"),
    ]


def test_blocks_end_at_the_ends_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a file is cut, in the middle of quoted lines too, its rows and their lines are the same."""
    rows = [f'"id {i}\nof ""two"" lines",{i}' if i % 3 else f"id {i},{i}" for i in range(60)]
    rows[40] = "odd,odd"
    csv = file_of(tmp_path / "a.csv", "prediction_id,label\n" + "\n".join(rows))
    whole = checked(csv)
    assert [m.place for m in whole.misfits] == [2 + 40 + sum(1 for i in range(40) if i % 3)]
    for size in (7, 40, 333):
        monkeypatch.setattr("mlflow_flywheel.pipelines.labels.reading._BLOCK_BYTES", size)
        cut = checked(csv)
        assert cut.rows["prediction_id"].to_pylist() == whole.rows["prediction_id"].to_pylist()
        assert [m.place for m in cut.misfits] == [m.place for m in whole.misfits]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "prediction_id,lable\na,1\n", "it needs label and .*did you mean 'lable'"),
        ("a.csv", "label,label,prediction_id\n", "has the column 'label' twice"),
        ("a.csv", "", "is empty"),
        ("a.csv", b"prediction_id,label\n\xff,1\n", "cannot be read"),
        ("a.parquet", "no Parquet", "cannot be read"),
        ("a.csv.gz", "no gzip", "cannot be read"),
    ],
)
def test_files_that_cannot_be_labels_say_why(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        checked(file_of(tmp_path / name, content))


_VALUES = st.one_of(
    st.none(),
    st.sampled_from(["1", " 0 ", "TRUE", "1e3", "nan", "", "2013-02-01", "2013-02-01T00:00:00.5Z", "yes"]),
    st.integers(-3, 2**40),
    st.floats(),
    st.booleans(),
    st.just([1]),
)
_RECORDS = st.fixed_dictionaries(
    {},
    optional={
        name: _VALUES for name in ("prediction_id", "client_request_id", "label", "label_time", "source")
    },
)


@given(st.lists(_RECORDS, max_size=8), st.sampled_from(["double", "string"]))
def test_a_table_is_checked_as_its_rows_are_one_by_one(records: list[dict[str, Any]], kind: str) -> None:
    """Whole columns at once and one row at a time keep the same labels and refuse the same rows."""
    names = ("prediction_id", "client_request_id", "label", "label_time", "source")
    try:
        rows: Any = pa.table({name: pa.array([r.get(name) for r in records]) for name in names})
    except pa.ArrowException:
        rows = records
    found = LabelCheck(kind, "test").check(Piece(rows, lambda i: i), RECEIVED)
    good, bad = [], []
    for i, record in enumerate(records):
        try:
            label = check_label({name: value for name, value in record.items() if value is not None}, kind)
        except BadInput:
            bad.append(i)
        else:
            good.append((label["prediction_id"], label["client_request_id"], label["label"]))
    kept = found.rows.to_pylist()
    assert [(r["prediction_id"], r["client_request_id"], r["label"]) for r in kept] == good
    assert [misfit.place for misfit in found.misfits] == bad


@pytest.fixture
def table(tmp_path: Path) -> InferenceTable:
    made = InferenceTable.open(str(tmp_path / "tables"), "m")
    made.ensure(FeatureSchema([Feature("a", "double")]), "double")
    return made


@pytest.fixture
def take(tmp_path: Path, table: InferenceTable) -> Callable[..., Taken]:
    def run(file: InputFile, skip: bool = False) -> Taken:
        return take_label_file(table, file, tmp_path / "labels", skip=skip)

    return run


def feedback(table: InferenceTable) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.feedback.dataset().to_table().to_pylist()
    return rows


def test_a_file_is_taken_once_under_whatever_name(
    tmp_path: Path, table: InferenceTable, take: Callable[..., Taken]
) -> None:
    first = file_of(tmp_path / "a.csv", "prediction_id,label\np,1\np,0\n")
    assert take(first) == Taken(first.path, accepted=2)
    again = file_of(tmp_path / "b.csv", "prediction_id,label\np,1\np,0\n")
    assert take(again) == Taken(again.path, before=True)
    assert take(file_of(tmp_path / "c.csv", "prediction_id,label\n")).accepted == 0
    rows = feedback(table)
    assert {row["source"] for row in rows} == {"file:a.csv"}
    latest = max(rows, key=lambda row: (row["label_time"], row["received_time"]))
    assert len(rows) == 2 and latest["label"] == 0.0  # the lower line is the later one


def test_a_row_that_is_none_keeps_its_file_out_or_is_set_aside(
    tmp_path: Path, table: InferenceTable, take: Callable[..., Taken]
) -> None:
    bad = "".join(f"p{i},{'late' if i in (3, 5, 6, 2500) else 1}\n" for i in range(3000))
    file = file_of(tmp_path / "a.csv", f"prediction_id,label\n{bad}")
    with pytest.raises(
        BadInput, match=r"line 5: label must .*; line 7: .*\(and 1 more near them\).*--on-error skip"
    ):
        take(file)
    assert feedback(table) == []
    assert not list((tmp_path / "tables").rglob("*labels-*"))
    taken = take(file, skip=True)
    assert (taken.accepted, taken.rejected) == (2996, 4) and len(feedback(table)) == 2996
    assert taken.rejects is not None
    aside = [json.loads(line) for line in Path(taken.rejects).read_text().splitlines()]
    assert [line["line"] for line in aside] == [5, 7, 8, 2502]
    assert aside[0]["record"] == {"prediction_id": "p3", "label": "late"} and aside[0]["file"] == file.path


def test_a_try_that_failed_leaves_nothing_and_the_next_one_takes_the_file(
    tmp_path: Path, table: InferenceTable, take: Callable[..., Taken], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path / "a.csv", "prediction_id,label\np,1\nq,0\n")

    def full(*_: object) -> None:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RejectsFile, "finish", full)
        with pytest.raises(Unavailable):
            take(file)
    assert feedback(table) == []
    assert not list((tmp_path / "tables").rglob("*labels-*"))
    assert take(file).accepted == 2 and len(feedback(table)) == 2


def test_a_file_that_changes_while_it_is_read_is_not_taken(
    tmp_path: Path, table: InferenceTable, take: Callable[..., Taken]
) -> None:
    file = file_of(tmp_path / "a.csv", "prediction_id,label\np,1\n")
    with (tmp_path / "a.csv").open("a") as writer:
        writer.write("q,1\n")
    with pytest.raises(BadInput, match="changed while it was read"):
        take(file)
    assert feedback(table) == []
