"""`on_error`: what does not fit fails the job with its place, or is set aside and the rest is answered."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from support.batches import FEATURES, answers, batch_config, logged, sum_rows, sum_scorer

from mlflow_flywheel.pipelines.batch import BatchResult, run_batch
from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.schema import Feature


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def skip(folder: Path, **changes: Any) -> BatchResult:
    return run_batch(batch_config(folder, on_error="skip", chunk_rows=20, **changes), sum_scorer())


def rejects(result: BatchResult) -> list[dict[str, Any]]:
    return [json.loads(line) for path in result.rejects for line in Path(path).read_text().splitlines()]


ROWS = [f"{i / 2},{i},a" for i in range(50)]
BAD = {3: "many,3,a", 24: "1.0,,a", 25: "1.0,2.5,b", 41: "x,1e30,b"}
TEXT = "x,n,kind\n" + "\n".join(BAD.get(i, row) for i, row in enumerate(ROWS)) + "\n"


def test_rows_of_a_csv_that_do_not_fit_are_set_aside_with_their_place(folder: Path) -> None:
    (folder / "in" / "a.csv").write_text(TEXT)
    result = skip(folder)
    assert (result.rows_in, result.rows_out, result.rows_rejected, result.files_rejected) == (50, 46, 4, 0)
    found = {row["row"]: row for row in rejects(result)}
    assert {at: (row["column"], row["expected"], row["found"]) for at, row in found.items()} == {
        3: ("x", "double", "'many'"),
        24: ("n", "long", "None"),
        25: ("n", "long", "2.5"),
        41: ("x", "double", "'x'"),
    }
    assert found[25]["record"] == {"x": "1.0", "n": 2.5, "kind": "b"}
    assert found[3]["reason"] == "column 'x' must be double, found 'many'"
    out = answers(folder / "out")
    good = [i for i in range(50) if i not in BAD]
    assert [int(key.rpartition(":")[2]) for key in out["prediction_id"].to_pylist()] == good
    assert out["prediction"].to_pylist() == [i * 1.5 for i in good]
    assert out["x"].to_pylist() == [i / 2 for i in good]
    table = logged(batch_config(folder))
    assert set(table["prediction_id"].to_pylist()) == set(out["prediction_id"].to_pylist())


@pytest.mark.parametrize(
    ("name", "text", "line", "found"),
    [
        ("a.csv", "x,n,kind\n1,2,a\n1,2\n3,4,b\n", 3, "2 values: 1,2"),
        ("a.csv", 'x,n,kind\n1,2,"a"\n1,2,3,4\n3,4,b\n', None, "4 values: 1,2,3,4"),
        ("b.jsonl", '{"x": 1, "n": 2}\n{"x": 1, "n": \n{"x": 3, "n": 4}\n', 2, "cannot be read as JSON"),
        ("b.jsonl", '{"x": 1, "n": 2}\n{"x": "?", "n": 2}\n{"x": 3, "n": 4}\n', 2, "'x' must be number"),
        ("b.jsonl", 'oops\n{"x": 1, "n": 2}\n{"x": 3, "n": 4}\n', 1, "cannot be read as JSON"),
    ],
)
def test_lines_that_are_no_rows_are_left_out(
    folder: Path, name: str, text: str, line: int | None, found: str
) -> None:
    (folder / "in" / name).write_text(text)
    result = skip(folder)
    assert (result.rows_out, result.rows_rejected) == (2, 1)
    (reject,) = rejects(result)
    assert line is None or reject["line"] == line
    assert found in reject["reason"]
    assert answers(folder / "out")["prediction"].to_pylist() == [3.0, 7.0]


def test_a_row_on_which_the_model_raises_is_found_and_its_neighbours_are_answered(folder: Path) -> None:
    features = (*FEATURES, Feature("fail", "double"))
    bad = {7, 33, 34}
    rows = sum_rows(50).append_column("fail", pa.array([float(i in bad) for i in range(50)]))
    pq.write_table(rows, folder / "in" / "a.parquet")
    config = batch_config(folder, chunk_rows=20, on_error="skip", id_column="key", timestamp_column="when")
    result = run_batch(config, sum_scorer(features))
    assert (result.rows_out, result.rows_rejected) == (47, 3)
    assert {row["row"] for row in rejects(result)} == bad
    assert all("asked to fail" in row["reason"] and row["column"] is None for row in rejects(result))
    whole = [f"k{i:04}" for i in range(50) if i not in bad]
    assert answers(folder / "out")["key"].to_pylist() == whole
    table = logged(config)
    assert sorted(table["client_request_id"].to_pylist()) == whole
    expected = {row["key"]: row["when"] for row in rows.to_pylist()}
    assert {row["client_request_id"]: row["event_time"] for row in table.to_pylist()} == {
        key: expected[key] for key in whole
    }


def test_a_model_that_answers_no_row_fails_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_flywheel.pipelines.batch.answering._PATIENCE", 10)
    features = (*FEATURES, Feature("fail", "double"))
    pq.write_table(sum_rows(50).append_column("fail", pa.array([1.0] * 50)), folder / "in" / "a.parquet")
    with pytest.raises(ModelError, match=r"a\.parquet'.*none of 10 rows.*asked to fail"):
        run_batch(batch_config(folder, on_error="skip"), sum_scorer(features))
    assert not list((folder / "out").rglob("*"))


def test_a_file_that_does_not_fit_is_set_aside_whole(folder: Path) -> None:
    pq.write_table(sum_rows(10), folder / "in" / "a.parquet")
    pq.write_table(pa.table({"x": ["1"], "n": [1]}), folder / "in" / "b.parquet")
    (folder / "in" / "c.parquet").write_text("not Parquet")
    (folder / "in" / "d.csv").write_text("n,kind\n1,a\n")
    result = skip(folder)
    assert (result.rows_out, result.files, result.files_rejected) == (10, 4, 3)
    assert [Path(path).name for path in result.outputs] == ["a.parquet"]
    reasons = {Path(row["file"]).name: row["reason"] for row in rejects(result)}
    assert "must be double, found string" in reasons["b.parquet"]
    assert "cannot be read as Parquet" in reasons["c.parquet"]
    assert "feature 'x' (double) is missing" in reasons["d.csv"]
    assert replace(skip(folder), seconds=result.seconds) == result
    assert answers(folder / "out").num_rows == logged(batch_config(folder)).num_rows == 10


def test_times_that_are_none_are_set_aside(folder: Path) -> None:
    (folder / "in" / "a.csv").write_text("x,n,at\n1,2,2013-01-01\n1,2,soon\n3,4,2013-01-02T05:00:00Z\n")
    result = skip(folder, timestamp_column="at")
    (reject,) = rejects(result)
    assert (reject["row"], reject["column"], reject["found"]) == (1, "at", "'soon'")
    assert result.rows_out == 2


def test_delta_answers_have_no_rejects_and_these_are_beside_them(folder: Path) -> None:
    (folder / "in" / "a.csv").write_text(TEXT)
    result = skip(folder, output=f"delta:{folder}/answers")
    assert DeltaTable(str(folder / "answers")).to_pyarrow_table().num_rows == 46
    assert result.rejects == (str(folder / "answers" / "_rejects" / "a.csv.jsonl"),)


def test_without_skip_the_first_misfit_is_named_with_its_row(folder: Path) -> None:
    for name, content in (
        ("a.csv", TEXT),
        ("b.csv", TEXT.replace("many,3,a", "1,3,a").replace("x,1e30,b", "1,1,b")),
    ):
        (folder / "in" / name).write_text(content)
        config = batch_config(folder, input=str(folder / "in" / name), job_id=name, chunk_rows=20)
        expected = (
            r"a\.csv.*column 'x' must be double, found.*many.*line 5"
            if name == "a.csv"
            else r"b\.csv.*row 24: column 'n' must be long, found None"
        )
        with pytest.raises(BadInput, match=expected):
            run_batch(config, sum_scorer())
    assert not list((folder / "out").rglob("*"))
    features = (*FEATURES, Feature("fail", "double"))
    rows = sum_rows(5).append_column("fail", pa.array([0.0, 0.0, 1.0, 0.0, 0.0]))
    pq.write_table(rows, folder / "c.parquet")
    with pytest.raises(ModelError, match="asked to fail"):
        run_batch(batch_config(folder, input=str(folder / "c.parquet"), job_id="c"), sum_scorer(features))


def test_what_stands_before_the_damage_of_a_file_is_answered(folder: Path) -> None:
    path = folder / "in" / "a.csv.gz"
    noise = random.Random(7)
    text = "x,n\n" + "".join(f"{noise.random()},{i}\n" for i in range(200_000))
    whole = gzip.compress(text.encode())
    path.write_bytes(whole[: len(whole) * 3 // 4])
    config = batch_config(folder, on_error="skip", chunk_rows=10_000, commit_rows=20_000, passthrough=("n",))
    result = run_batch(config, sum_scorer())
    assert result.rows_out > 50_000
    assert "rest of the file" in rejects(result)[-1]["reason"]
    out = answers(folder / "out")
    assert out["n"].to_pylist() == list(range(result.rows_out))
    assert logged(config).num_rows == result.rows_out
