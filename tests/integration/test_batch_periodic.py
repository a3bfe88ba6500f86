"""Batch jobs that come again: what is new by a column that only grows, and spans of the past."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from support.batches import REF, batch_config, logged, sum_rows, sum_scorer

from mlflow_flywheel.pipelines.batch import BatchProgress, BatchResult, run_batch
from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.inference_table import InferenceTable

FIRST = datetime(2013, 1, 1, 0, 26, 40, tzinfo=timezone.utc)  # of `sum_rows`, which are a minute apart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def night(folder: Path, number: int, **changes: Any) -> BatchResult:
    """Run an incremental job; each night writes to a folder of its own."""
    job = f"night-{number}"
    fields = {"watermark": "n", "incremental": True, "chunk_rows": 20, "output": str(folder / "out" / job)}
    return run_batch(batch_config(folder, job_id=job, **{**fields, **changes}), sum_scorer())


def keys_of(place: Path) -> list[str]:
    return [
        key for path in sorted(place.rglob("*.parquet")) for key in pq.read_table(path)["key"].to_pylist()
    ]


def test_rows_of_files_above_the_watermark_are_new_and_late_ones_are_not(folder: Path) -> None:
    pq.write_table(sum_rows(50), folder / "in" / "a.parquet")
    first = night(folder, 1)
    assert (first.rows_out, first.watermark) == (50, "49")
    assert first.newest_event is not None and first.columns_in["n"] == "int64"
    assert (night(folder, 2).rows_out, night(folder, 2).files) == (0, 0)

    pq.write_table(sum_rows(80), folder / "in" / "a.parquet")  # it grew
    pacsv.write_csv(sum_rows(30, 70).drop_columns(["when"]), folder / "in" / "b.csv")
    pq.write_table(sum_rows(40), folder / "in" / "late.parquet")
    third = night(folder, 3)
    assert (third.rows_out, third.files, third.watermark) == (30 + 30, 2, "99")
    assert keys_of(folder / "out" / "night-3") == [f"k{i:04}" for i in (*range(50, 80), *range(70, 100))]
    assert replace(night(folder, 3), seconds=third.seconds) == third, "the same job again is done"
    counts = InferenceTable.open(batch_config(folder).tables, REF.name).counts()
    assert (counts.rows, counts.duplicates) == (110, 0)
    rows_in_the_file = {
        name.rpartition(":")[2] for name in logged(batch_config(folder))["prediction_id"].to_pylist()
    }
    assert rows_in_the_file >= {str(i) for i in range(50, 80)}, (
        "ids number the rows of the file, not of the new ones"
    )


def test_a_watermark_may_be_a_time_in_any_format_and_rows_without_one_are_never_taken(folder: Path) -> None:
    lines = [f'{{"x": 1, "n": {i}, "at": "2013-01-0{1 + i}T00:00:00Z"}}' for i in range(3)]
    (folder / "in" / "a.jsonl").write_text("\n".join([*lines, '{"x": 1, "n": 9, "at": null}']))
    first = night(folder, 1, watermark="at")
    assert (first.rows_out, first.watermark) == (3, "2013-01-03T00:00:00+00:00")
    (folder / "in" / "b.csv").write_text("x,n,kind,at\n1,4,a,2013-01-03\n1,5,a,2013-01-03 10:00\n1,6,a,\n")
    second = night(folder, 2, watermark="at")
    assert (second.rows_out, second.watermark) == (1, "2013-01-03T10:00:00+00:00")
    (folder / "in" / "c.csv").write_text("x,n,kind,at\n1,7,a,8\n")
    with pytest.raises(BadInput, match=r"c\.csv.*'at' holds numbers in one place and times in another"):
        night(folder, 3, watermark="at")
    (folder / "in" / "c.csv").write_text("x,n,kind,at\n1,7,a,soon\n")
    with pytest.raises(BadInput, match=r"c\.csv.*'at' must hold times"):
        night(folder, 4, watermark="at")
    with pytest.raises(BadInput, match=r"has no column 'ta'; it has: x, n"):
        night(folder, 5, watermark="ta")


def test_only_a_job_that_succeeded_moves_the_watermark(folder: Path) -> None:
    pq.write_table(sum_rows(40, 100), folder / "in" / "a.parquet")
    (folder / "in" / "b.csv").write_text("x,n,kind\n" + "0.5,5,a\n" * 30 + "0.5,,a\n")
    with pytest.raises(BadInput, match=r"b\.csv.*row 30: column 'n' must be long"):
        night(folder, 1, watermark="x")
    (folder / "in" / "b.csv").write_text("x,n,kind\n" + "0.5,5,a\n" * 30)
    second = night(folder, 2, watermark="x")
    assert second.rows_out == 30, "what was done is not repeated, and what was not is not lost"
    assert night(folder, 3, watermark="x").watermark == "0.5"


def test_a_delta_table_gives_the_rows_above_the_watermark_and_skips_the_other_files(folder: Path) -> None:
    source = str(folder / "table")

    def table_night(number: int) -> BatchResult:
        return night(folder, number, input=source)

    write_deltalake(source, sum_rows(60))
    assert (table_night(1).rows_out, table_night(1).watermark) == (60, "59")
    assert table_night(2).files == 0, "the same version"
    write_deltalake(source, sum_rows(25, 50), mode="append")
    (old,) = [path for path in Path(source).glob("*.parquet") if pq.read_metadata(path).num_rows == 60]
    old.rename(folder / "away")  # a job that looked into it would fail
    third = table_night(3)
    assert (third.rows_in, third.watermark) == (15, "74")
    assert keys_of(folder / "out" / "night-3") == [f"k{i:04}" for i in range(60, 75)]
    with pytest.raises(BadInput, match=r"Delta table, of which only a watermark tells"):
        night(folder, 4, input=source, watermark=None)


@pytest.fixture
def database(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "flights.db")) as connection:
        connection.execute("CREATE TABLE flights (key TEXT, x REAL, n INTEGER, kind TEXT, at TEXT)")
        connection.commit()
    return f"sqlite:///{folder}/flights.db"


def depart(folder: Path, *numbers: int) -> None:
    rows = [(f"k{i:04}", 1.0, i, "a", f"2013-01-{1 + i // 24:02} {i % 24:02}:00") for i in numbers]
    with closing(sqlite3.connect(folder / "flights.db")) as connection:
        connection.executemany("INSERT INTO flights VALUES (?, ?, ?, ?, ?)", rows)
        connection.commit()


@pytest.mark.parametrize(("column", "mark"), [("n", "90"), ("at", "2013-01-04 18:00")])
def test_a_query_gives_the_rows_above_the_watermark_in_its_order(
    folder: Path, database: str, column: str, mark: str
) -> None:
    def sql_night(number: int) -> BatchResult:
        query = "SELECT * FROM flights WHERE kind = 'a'; -- every one"
        changes = {"input": database, "query": query.replace(";", ""), "watermark": column}
        return night(folder, number, **changes)

    assert (sql_night(1).files, sql_night(1).watermark) == (0, None)
    depart(folder, 40, 7, 31)
    assert sql_night(2).rows_out == 3
    assert keys_of(folder / "out" / "night-2") == ["k0007", "k0031", "k0040"]
    depart(folder, 90, 40, 12, 60)  # one as high as the watermark, and one that is late
    third = sql_night(3)
    assert (third.rows_out, third.watermark) == (2, mark)
    assert (sql_night(4).files, sql_night(4).watermark) == (0, mark)
    assert not list((folder / "state").rglob("*.input.parquet"))
    with pytest.raises(BadInput, match=r"(no column|no such column).*'?ta'?"):
        night(folder, 5, input=database, query="SELECT * FROM flights", watermark="ta")


def test_a_query_that_goes_on_neither_loses_nor_repeats_rows_that_came_meanwhile(
    folder: Path, database: str
) -> None:
    def config(number: int) -> BatchConfig:
        return batch_config(
            folder,
            job_id=f"night-{number}",
            input=database,
            query="SELECT * FROM flights",
            watermark="n",
            incremental=True,
            chunk_rows=20,
            commit_rows=20,
            output=f"delta:{folder}/answers",
        )

    def stop(progress: BatchProgress) -> None:
        if progress.rows >= 60:
            raise KeyboardInterrupt

    depart(folder, *range(90))
    with pytest.raises(KeyboardInterrupt):
        run_batch(config(1), sum_scorer(), stop)
    depart(folder, *range(90, 100))
    assert (run_batch(config(1), sum_scorer()).rows_out, run_batch(config(2), sum_scorer()).rows_out) == (
        90,
        10,
    )
    out = DeltaTable(str(folder / "answers")).to_pyarrow_table()
    assert sorted(out["key"].to_pylist()) == [f"k{i:04}" for i in range(100)]


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# fails on rows beyond 39 to 59, if the database looks at them
SPAN_ONLY = (
    "SELECT *, json(CASE WHEN n BETWEEN 39 AND 59 THEN '1' ELSE 'odd' END) AS looked FROM flights -- all"
)


def test_a_back_fill_asks_a_database_for_the_rows_of_its_span_alone(folder: Path, database: str) -> None:
    depart(folder, *range(100))

    def fill(job: int, query: str, column: str, **span: datetime) -> list[str]:
        config = batch_config(
            folder, job_id=f"fill-{job}", input=database, query=query, timestamp_column=column, **span
        )
        run_batch(config.model_copy(update={"output": str(folder / f"out-{job}")}), sum_scorer())
        return keys_of(folder / f"out-{job}")

    start, end = (EPOCH + timedelta(milliseconds=n) for n in (39.5, 60))
    span = [f"k{i:04}" for i in range(40, 60)]
    assert fill(1, SPAN_ONLY, "n", start=start, end=end) == span
    with pytest.raises(Unavailable, match="malformed JSON"):
        fill(2, SPAN_ONLY, "n", end=end)
    # text is in no order of times: all of it is asked for, and the span chosen here
    day = datetime(2013, 1, 2, tzinfo=timezone.utc)
    assert fill(3, "SELECT * FROM flights", "at", start=day, end=day + timedelta(hours=5)) == [
        f"k{i:04}" for i in range(24, 29)
    ]
    with pytest.raises(BadInput, match="no column 'att', the timestamp_column .did you mean 'at'"):
        fill(4, "SELECT * FROM flights", "att", start=day)


def test_a_back_fill_scores_the_rows_of_its_span_and_changes_nothing_of_what_is_new(folder: Path) -> None:
    pq.write_table(sum_rows(60), folder / "in" / "a.parquet")
    pacsv.write_csv(sum_rows(60, 60), folder / "in" / "b.csv")
    pq.write_table(sum_rows(10, 900), folder / "in" / "other-day.parquet")
    assert night(folder, 1, watermark=None).rows_out == 130
    pq.write_table(sum_rows(5, 1000), folder / "in" / "new.parquet")

    span = {"start": FIRST + timedelta(minutes=50), "end": FIRST + timedelta(minutes=75)}
    again = batch_config(
        folder, job_id="again", output=str(folder / "again"), timestamp_column="when", variant="backfill", chunk_rows=20,
        **span,
    )  # fmt: skip
    result = run_batch(again, sum_scorer())
    assert (result.rows_out, result.files) == (25, 2), "statistics tell which files have no such row"
    assert keys_of(folder / "again") == [f"k{i:04}" for i in range(50, 75)]
    table = InferenceTable.open(again.tables, REF.name)
    assert table.read(variant="backfill").num_rows == 25
    assert table.read(variant="champion").num_rows == 130
    assert night(folder, 2, watermark=None).rows_out == 5


def test_a_back_fill_of_a_delta_table_skips_its_other_files(folder: Path) -> None:
    source = str(folder / "table")
    write_deltalake(source, sum_rows(60))
    write_deltalake(source, sum_rows(60, 60), mode="append")
    (old,) = [path for path in Path(source).glob("*.parquet") if pq.read_table(path)["n"][0].as_py() == 0]
    old.rename(folder / "away")  # a job that looked into it would fail
    span = {"start": FIRST + timedelta(minutes=70), "end": FIRST + timedelta(minutes=200)}
    config = batch_config(folder, input=source, timestamp_column="when", **span)
    assert run_batch(config, sum_scorer()).rows_out == 50
    with pytest.raises(BadInput, match="cannot be read as Delta"):
        run_batch(batch_config(folder, job_id="all", input=source), sum_scorer())


def test_a_back_fill_names_the_row_of_the_file_and_sets_odd_times_aside(folder: Path) -> None:
    lines = [f"{i},{i},a,2013-01-01T00:{i:02}Z" for i in range(60)]
    lines[40], lines[50] = "40,many,a,2013-01-01T00:40Z", "50,50,a,once"
    (folder / "in" / "a.csv").write_text("\n".join(["x,n,kind,when", *lines]))
    half = {
        "timestamp_column": "when",
        "start": datetime(2013, 1, 1, 0, 30, tzinfo=timezone.utc),
        "chunk_rows": 20,
    }
    result = run_batch(batch_config(folder, on_error="skip", **half), sum_scorer())
    assert (result.rows_out, result.rows_rejected) == (28, 2)
    rejects = [
        json.loads(line) for line in (folder / "out" / "_rejects" / "a.csv.jsonl").read_text().splitlines()
    ]
    assert sorted((reject["row"], reject["column"]) for reject in rejects) == [(40, "n"), (50, "when")]
    with pytest.raises(BadInput, match=r"a\.csv"):
        run_batch(batch_config(folder, job_id="strict", **half), sum_scorer())


def test_folders_tell_which_files_a_watermark_or_a_span_need_not_read(folder: Path) -> None:
    for day in (1, 2, 3):
        place = folder / "in" / f"day=2013-01-0{day}"
        place.mkdir()
        (place / "a.csv").write_text("x,n,kind\n1,1,a\n")
    assert night(folder, 1, watermark="day").files == 3
    (folder / "in" / "day=2013-01-02" / "late.csv").write_text("not even\na table\n")
    (folder / "in" / "day=2013-01-04").mkdir()
    (folder / "in" / "day=2013-01-04" / "a.csv").write_text("x,n,kind\n1,1,a\n")
    assert night(folder, 2, watermark="day").files == 1
    config = batch_config(
        folder, job_id="span", timestamp_column="day", end=datetime(2013, 1, 2, tzinfo=timezone.utc)
    )
    assert run_batch(config, sum_scorer()).files == 1


def test_text_that_is_compared_as_numbers_is_not_looked_up_in_statistics(folder: Path) -> None:
    def write(name: str, *numbers: str) -> None:
        rows = sum_rows(len(numbers)).append_column("at", pa.array(numbers))
        pq.write_table(rows, folder / "in" / name)

    write("a.parquet", "8", "9")
    assert night(folder, 1, watermark="at").watermark == "9"
    write("b.parquet", "10", "9")
    second = night(folder, 2, watermark="at")
    assert (second.rows_out, second.watermark) == (1, "10")


def test_a_mark_keeps_its_kind(tmp_path: Path) -> None:
    from datetime import date
    from decimal import Decimal

    from mlflow_flywheel.pipelines.batch.watermark import Watermarks, from_json, to_json

    values = [
        5,
        2**62 + 1,
        1.5,
        FIRST,
        FIRST.replace(tzinfo=None),
        date(2013, 1, 1),
        Decimal("1.10"),
        "2013-01-01",
    ]
    for number, value in enumerate(values):
        marks = Watermarks(tmp_path, "n")
        marks.advance(f"job-{number}", to_json(value, "n"))
        marks.advance(f"job-{number}", to_json(0, "n"))
        marks.close()
        assert from_json(Watermarks(tmp_path, "n").mark) == value
    assert Watermarks(tmp_path, "other").mark is None
    with pytest.raises(BadInput, match="bytes"):
        to_json(b"1", "n")
