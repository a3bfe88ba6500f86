from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.batches import sum_rows

from mlflow_flywheel.pipelines.batch.inputs import InputFile, find_inputs
from mlflow_flywheel.pipelines.batch.outputs import Output
from mlflow_flywheel.pipelines.errors import BadInput, NotFound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in (
        "b.csv",
        "a.parquet",
        "sub/c.jsonl.gz",
        "_SUCCESS",
        ".hidden.csv",
        "_tmp/d.csv",
        "notes.txt",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_a_folder_gives_its_known_files_in_order_and_no_hidden_ones(folder: Path) -> None:
    found = find_inputs(str(folder))
    assert [(f.relative, f.format) for f in found] == [
        ("a.parquet", "parquet"),
        ("b.csv", "csv"),
        ("sub/c.jsonl.gz", "jsonl"),
    ]


def test_a_glob_names_files_relative_to_its_fixed_part(folder: Path) -> None:
    assert [f.relative for f in find_inputs(f"{folder}/**/*.gz")] == ["sub/c.jsonl.gz"]
    assert [f.relative for f in find_inputs(f"file://{folder}/*.csv")] == ["b.csv"]
    assert find_inputs(f"{folder}/*.pq") == []


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].csv").write_text("x\n1\n")
    assert [f.relative for f in find_inputs(str(tmp_path / "a[1].csv"))] == ["a[1].csv"]


def test_what_cannot_be_input_is_named(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"missing\.csv"):
        find_inputs(str(folder / "missing.csv"))
    with pytest.raises(BadInput, match=r"notes\.txt.*\.parquet"):
        find_inputs(str(folder / "notes.txt"))
    with pytest.raises(BadInput, match=r"nowhere://bucket/x.*no store.*local path"):
        find_inputs("nowhere://bucket/x")
    with pytest.raises(BadInput, match="password") as error:
        find_inputs("s3://user:secret@bucket/x")
    assert "secret" not in error.value.message


def test_a_replaced_file_is_another_input(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n1\n")
    (before,) = find_inputs(str(path))
    path.write_text("x\n2\n")
    os.utime(path, ns=(before.stamp + 1, before.stamp + 1))
    (after,) = find_inputs(str(path))
    assert before.digest != after.digest
    after.check_unchanged()
    with pytest.raises(BadInput, match="changed during the job"):
        before.check_unchanged()
    path.unlink()
    with pytest.raises(BadInput, match="disappeared"):
        after.check_unchanged()


def test_files_of_equal_content_have_different_digests(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(sum_rows(3), tmp_path / name)
    a, b = find_inputs(str(tmp_path))
    assert a.digest != b.digest
    assert InputFile.from_json(a.to_json()) == a


def test_outputs_keep_the_names_of_their_inputs(folder: Path, tmp_path: Path) -> None:
    files = find_inputs(str(folder))
    output = Output(str(tmp_path / "out"), "job", str(folder), files)
    assert [output.target(f).text for f in files] == [
        f"{tmp_path}/out/a.parquet",
        f"{tmp_path}/out/b.csv.parquet",
        f"{tmp_path}/out/sub/c.jsonl.gz.parquet",
    ]


@pytest.mark.parametrize("where", ["in", "in/sub/out", "in/a.parquet"])
def test_output_within_the_input_is_refused(folder: Path, tmp_path: Path, where: str) -> None:
    source = folder if where != "in/a.parquet" else folder / "a.parquet"
    with pytest.raises(BadInput, match="would become input"):
        Output(str(tmp_path / where), "job", str(source), find_inputs(str(source)))


def test_one_output_file_takes_one_input_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="3 files"):
        Output(str(tmp_path / "out.parquet"), "job", str(folder), find_inputs(str(folder)))
    one = find_inputs(str(folder / "b.csv"))
    single = Output(str(tmp_path / "out.parquet"), "job", "b.csv", one)
    assert single.target(one[0]).text == str(tmp_path / "out.parquet")
    beside = Output(str(folder), "job", str(folder / "b.csv"), one)
    assert beside.target(one[0]).text == str(folder / "b.csv.parquet")


def test_inputs_that_would_share_an_output_are_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "a.csv.parquet"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadInput, match="same file"):
        Output(str(tmp_path / ".." / "out"), "job", str(tmp_path), find_inputs(str(tmp_path)))
