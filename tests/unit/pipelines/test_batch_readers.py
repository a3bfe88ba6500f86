from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.batches import FEATURES, sum_rows

from mlflow_flywheel.pipelines.batch import csv_reader, jsonl_reader
from mlflow_flywheel.pipelines.batch.columns import caller_ids, event_times, with_parsed_times
from mlflow_flywheel.pipelines.batch.inputs import find_inputs
from mlflow_flywheel.pipelines.batch.readers import peek, read_chunks
from mlflow_flywheel.pipelines.batch.wanted import Retype, Wanted
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

ALL = Wanted(FeatureSchema(FEATURES))
FEW = Wanted(FeatureSchema(FEATURES), passthrough=("key",))


def read(path: Path, wanted: Wanted = ALL, rows: int = 1000, types: Any = None) -> pa.Table:
    (file,) = find_inputs(str(path))
    return pa.concat_tables(read_chunks(file, wanted, rows, types))


def ids_of(table: pa.Table, column: str) -> list[Any]:
    found = caller_ids(table, column)
    assert found is not None
    return found.to_pylist()


def times_of(values: Any) -> list[Any]:
    found = event_times(pa.table({"t": values}), "t")
    assert found is not None
    return found.to_pylist()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def sizes(path: Path, rows: int) -> list[int]:
    (file,) = find_inputs(str(path))
    return [chunk.num_rows for chunk in read_chunks(file, ALL, rows)]


def write_all_formats(folder: Path, table: pa.Table) -> list[Path]:
    frame = table.to_pandas()
    pq.write_table(table, folder / "a.parquet", row_group_size=7)
    frame.to_csv(folder / "b.csv", index=False)
    frame.to_csv(folder / "c.csv.gz", index=False)
    records = [json.dumps(row, default=str) for row in table.to_pylist()]
    (folder / "d.jsonl").write_text("\n".join(records))
    with gzip.open(folder / "e.ndjson.gz", "wt") as out:
        out.write("\n".join(records) + "\n\n")
    return sorted(folder.iterdir())


def test_every_format_gives_the_same_features(tmp_path: Path) -> None:
    table = sum_rows(40)
    for path in write_all_formats(tmp_path, table):
        found = ALL.features.from_table(read(path))
        assert found.equals(ALL.features.from_table(table)), path.name
        assert sizes(path, 16) == [16, 16, 8], path.name
        (file,) = find_inputs(str(path))
        assert set(peek(file, ALL).column_names) == set(table.column_names), path.name


def test_only_wanted_columns_are_read(tmp_path: Path) -> None:
    for path in write_all_formats(tmp_path, sum_rows(5)):
        assert set(read(path, FEW).column_names) == {"key", "x", "n", "kind"}, path.name


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", 200)
    monkeypatch.setattr(jsonl_reader, "_BLOCK_BYTES", 200)
    table = sum_rows(300)
    for path in write_all_formats(tmp_path, table):
        for wanted in (ALL, FEW):
            found = read(path, wanted, rows=64)
            assert wanted.features.from_table(found).equals(ALL.features.from_table(table)), path.name
            assert found["key"].to_pylist() == table["key"].to_pylist()


def test_a_quote_that_comes_late_in_a_csv_may_hold_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", 100)
    rows = [f"{i}.5,{i},k{i}" for i in range(200)]
    rows[150] = '150.5,150,"two\n151.5,151,lines"'
    rows[180] = '180.5,180,5" wide'
    path = write(tmp_path / "a.csv", "x,n,kind\n" + "\n".join(rows))
    found = read(path)
    assert found["n"].to_pylist() == list(range(200))
    assert found["kind"].to_pylist()[149:152] == ["k149", "two\n151.5,151,lines", "k151"]
    assert found["kind"].to_pylist()[180] == '5" wide'
    only = write(tmp_path / "b.csv", 'x,n,kind\n1,2,"a"\n')
    assert read(only)["kind"].to_pylist() == ["a"]


def test_csv_takes_for_missing_what_pandas_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'x,n,kind\nNA,1,NA\n,2,\nnan,3,"null"\n1.5,4,none\n'
    found = read(write(tmp_path / "a.csv", text))
    expected = pd.read_csv(tmp_path / "a.csv")
    assert found["kind"].is_null().to_pylist() == expected["kind"].isna().tolist()
    assert found["x"].is_null().to_pylist() == expected["x"].isna().tolist()
    monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", 16)  # most blocks have no N, some have
    words = ["", "NA", "n/a", "null", "NULL", "NaN", "-nan", "1.#IND", "-1.#QNAN", "#N/A"]
    lines = [line for word in words for line in ("0.5,1,a", f"{word},2,b", f"1.5,3,{word}")]
    found = read(write(tmp_path / "b.csv", "\n".join(["x,n,kind", *lines])))
    assert found["x"].to_pylist() == [0.5, None, 1.5] * len(words)
    assert found["kind"].to_pylist() == ["a", "b", None] * len(words)


def test_csv_with_a_byte_order_mark_quoted_newlines_and_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", '\ufeffx,n,kind\n1,2,"a\nb"\n'))["kind"].to_pylist() == ["a\nb"]
    assert read(write(tmp_path / "b.csv", "x,n,kind\n")).num_rows == 0
    assert sizes(tmp_path / "b.csv", 10) == [0]
    assert read(write(tmp_path / "c.jsonl", "")).num_rows == 0


def test_whole_numbers_written_as_floats_fit_an_integer(tmp_path: Path) -> None:
    for name, text in (("a.csv", "x,n\n1,3.0\n"), ("b.jsonl", '{"x": 1, "n": 3.0}\n')):
        path = write(tmp_path / name, text)
        with pytest.raises(Retype) as retype:
            read(path)
        table = read(path, types=retype.value.types)
        assert ALL.features.from_table(table)["n"].to_pylist() == [3], name
        with pytest.raises(BadInput, match="'n'"):
            bad = write(path, text.replace("3.0", "3.5"))
            ALL.features.from_table(read(bad, types=retype.value.types))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_line_that_does_not_fit_is_counted_from_the_top_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", 64)
    lines = ["\ufeffx,n,kind", *["1,2,a"] * 200, "", *["1,2,a"] * 50]
    for wrong, complaint in (("many,2,a", "line 252"), ("1,2", "Line 252")):
        text = "\n".join([*lines[:251], wrong, *lines[251:]])
        with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wt") as file:
            file.write(text)
        with pytest.raises(BadInput, match=complaint):
            read(tmp_path / name)
    dropped: list[int | None] = []
    (found,) = find_inputs(str(tmp_path / name))
    list(read_chunks(found, ALL, 1000, None, lambda line, reason: dropped.append(line)))
    assert dropped == [252]


def test_a_column_that_stops_being_a_number_becomes_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "_BLOCK_BYTES", 64)
    path = write(tmp_path / "a.csv", "x,n,flight\n" + "1,2,17\n" * 50 + "1,2,17A\n")
    with pytest.raises(Retype) as retype:
        read(path)
    assert retype.value.types == {"flight": pa.string()}
    assert read(path, types=retype.value.types)["flight"].to_pylist()[-1] == "17A"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "x,n\nmany,1\n", r"a\.csv.*'x' must be double.*many"),
        ("a.csv", "x,n\n1,2,3\n", r"a\.csv.*CSV.*Expected 2 columns"),
        ("a.csv", "", r"a\.csv.*empty"),
        ("a.csv", "x,x,n\n1,1,1\n", r"a\.csv.*'x' twice"),
        ("a.csv.gz", "x,n\n1,1\n", r"a\.csv\.gz.*cannot be read"),
        ("a.jsonl", '[{"x": 1}]', r"a\.jsonl.*object per line"),
        (
            "a.jsonl",
            '{"x": 1, "n": 1}\n{"x": "1", "n": 1}\n',
            r"a\.jsonl.*'x' must be number.*string in line 2",
        ),
        ("a.jsonl", '{"x": 1, "n": 1', r"a\.jsonl.*object per line"),
        ("a.parquet", "PAR1 but not really", r"a\.parquet.*Parquet"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint):
        read(write(tmp_path / name, content))


def test_a_named_column_must_exist(tmp_path: Path) -> None:
    wanted = Wanted(ALL.features, id_column="keys")
    for path in write_all_formats(tmp_path, sum_rows(3)):
        with pytest.raises(BadInput, match=r"no column 'keys' \(did you mean 'key'\?\)"):
            read(path, wanted)


def test_a_feature_that_json_never_mentions_is_missing_not_null(tmp_path: Path) -> None:
    table = read(write(tmp_path / "a.jsonl", '{"n": 1}\n{"n": 2}\n'))
    with pytest.raises(BadInput, match="feature 'x'"):
        ALL.features.from_table(table)
    table = read(write(tmp_path / "b.jsonl", '{"n": 1, "x": null}\n{"n": 2}\n'))
    assert ALL.features.from_table(table)["x"].to_pylist() == [None, None]


def test_an_id_keeps_its_zeros_in_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,n,flight\n1,2,007\n")
    assert read(path)["flight"].to_pylist() == [7]
    assert ids_of(read(path, Wanted(ALL.features, id_column="flight")), "flight") == ["007"]
    numbers = read(write(tmp_path / "a.jsonl", '{"x": 1, "n": 2, "flight": 7}'))
    assert ids_of(numbers, "flight") == ["7"]


def test_times_are_read_in_every_common_form() -> None:
    forms = ["2013-01-01T05:00:00Z", "2013-01-01 05:00:00", "2013-01-01T07:00:00+02:00", "2013-01-01T05:00"]
    for texts in ([form] for form in forms):
        (time,) = times_of(texts)
        assert time is not None and time.isoformat() == "2013-01-01T05:00:00+00:00", texts
    mixed = times_of([*forms, None])
    assert {time and time.isoformat() for time in mixed} == {"2013-01-01T05:00:00+00:00", None}
    naive = pa.array([pd.Timestamp("2013-01-01 05:00:00")], pa.timestamp("ms"))
    assert [str(time) for time in times_of(naive)] == ["2013-01-01 05:00:00+00:00"]
    for numbers in ([1_357_016_400_250, None], [1_357_016_400_250.0, None]):
        exact, none = times_of(numbers)
        assert str(exact) == "2013-01-01 05:00:00.250000+00:00"
        assert none is None
    with pytest.raises(BadInput, match="'t' must hold times.*yesterday.*ISO 8601"):
        event_times(pa.table({"t": ["yesterday"]}), "t")
    with pytest.raises(BadInput, match="'t' must hold times, found bool"):
        event_times(pa.table({"t": [True]}), "t")


def test_datetime_features_are_parsed_from_text() -> None:
    schema = FeatureSchema([Feature("at", "datetime")])
    table = with_parsed_times(pa.table({"at": ["2013-01-01 05:00:00"]}), schema)
    assert schema.from_table(table)["at"][0].as_py().hour == 5
