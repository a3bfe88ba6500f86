"""Where a batch job reads and writes beside local files: object stores, partitioned data sets, databases."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyarrow import fs
from support.batches import FEATURES, answers, batch_config, logged, sum_rows, sum_scorer
from support.stores import s3_store

from mlflow_flywheel.pipelines.batch import BatchProgress, run_batch, sql_input
from mlflow_flywheel.pipelines.batch.inputs import find_inputs
from mlflow_flywheel.pipelines.batch.locations import Location
from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.delta import DeltaLog
from mlflow_flywheel.pipelines.errors import BadInput, NotFound, Unavailable
from mlflow_flywheel.pipelines.schema import Feature
from mlflow_flywheel.pipelines.stores import table_files


@pytest.fixture
def memory() -> Iterator[str]:
    """Return a URL of fsspec's store in memory."""
    place = f"memory://{uuid.uuid4().hex}"
    yield place
    found = Location.of(place)
    found.files.delete_dir(found.path)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as environment, s3_store(environment, "flights"):
        yield "s3://flights"


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> str:
    return f"{request.getfixturevalue(request.param)}/{uuid.uuid4().hex}"


def fill(store: str) -> pa.Table:
    rows = sum_rows(70)
    for name, some in (("a.parquet", rows.slice(0, 30)), ("deep/b.csv.gz", rows.slice(30))):
        with Location.of(f"{store}/in/{name}").write() as out:
            if name.endswith(".gz"):
                with pa.CompressedOutputStream(out, "gzip") as text:
                    pacsv.write_csv(some.drop_columns(["when"]), text)
            else:
                pq.write_table(some, out)
    return rows


def stored(place: str) -> dict[str, pa.Table]:
    root = Location.of(place)
    return {name: pq.read_table(root.below(name).read_anywhere()) for name, _, _ in root.walk()}


def test_files_of_a_store_are_answered_in_the_store(store: str, tmp_path: Path) -> None:
    rows = fill(store)
    config = batch_config(tmp_path, input=f"{store}/in", output=f"{store}/out", chunk_rows=20)
    result = run_batch(config, sum_scorer())
    assert result.rows_out == 70
    out = stored(f"{store}/out")
    assert set(out) == {"a.parquet", "deep/b.csv.gz.parquet"}
    assert result.outputs == (f"{store}/out/a.parquet", f"{store}/out/deep/b.csv.gz.parquet")
    assert [key for table in out.values() for key in table["key"].to_pylist()] == rows["key"].to_pylist()
    assert logged(config).num_rows == 70
    assert run_batch(config, sum_scorer()).rows_out == 70  # it is done, and finds its answers there
    assert logged(config).num_rows == 70


def test_globs_and_missing_names_in_a_store(store: str) -> None:
    fill(store)
    assert [f.relative for f in find_inputs(f"{store}/in/*.parquet")] == ["a.parquet"]
    assert [f.relative for f in find_inputs(f"{store}/in/**/*.gz")] == ["deep/b.csv.gz"]
    assert [f.relative for f in find_inputs(f"{store}/in/a.parquet")] == ["a.parquet"]
    with pytest.raises(NotFound, match="nothing"):
        find_inputs(f"{store}/nothing")


def test_a_job_that_fails_shows_nothing_in_a_store(store: str, tmp_path: Path) -> None:
    fill(store)
    with Location.of(f"{store}/in/c.csv").write() as out:
        out.write(b"x,n,kind\n" + b"1,2,a\n" * 50 + b"1,,a\n")
    config = batch_config(tmp_path, input=f"{store}/in", output=f"{store}/out", chunk_rows=20)
    with pytest.raises(BadInput, match=r"c\.csv.*row 50"):
        run_batch(config, sum_scorer())
    assert set(stored(f"{store}/out")) == {"a.parquet"}
    result = run_batch(config.model_copy(update={"on_error": "skip", "job_id": "again"}), sum_scorer())
    assert (result.rows_out, result.rows_rejected) == (120, 1)
    (reject,) = Location.of(result.rejects[0]).read().read().splitlines()
    assert json.loads(reject)["row"] == 50


def test_folders_of_a_partitioned_data_set_give_columns(tmp_path: Path) -> None:
    for month, city in ((1, "New%20York"), (2, "__HIVE_DEFAULT_PARTITION__")):
        place = tmp_path / "in" / f"n={month}" / f"kind={city}"
        place.mkdir(parents=True)
        pq.write_table(pa.table({"x": [0.5, 1.5], "extra": [month, month]}), place / "a.parquet")
    (tmp_path / "in" / "n=3" / "kind=b").mkdir(parents=True)
    (tmp_path / "in" / "n=3" / "kind=b" / "b.csv").write_text("x,extra\n2.5,3\n")
    config = batch_config(tmp_path)
    run_batch(config, sum_scorer())
    out = (
        pads.dataset(tmp_path / "out", partitioning="hive")
        .to_table()
        .sort_by([("n", "ascending"), ("x", "ascending")])
    )
    assert out["prediction"].to_pylist() == [1.5, 2.5, 2.5, 3.5, 5.5]
    table = logged(config)
    assert set(table["feature.kind"].to_pylist()) == {"New York", None, "b"}
    assert table["feature.n"].to_pylist().count(3.0) == 1
    run_batch(
        batch_config(tmp_path, job_id="b", passthrough=("n",), id_column="n", output=str(tmp_path / "few")),
        sum_scorer(),
    )
    few = answers(tmp_path / "few")
    assert few.column_names == ["prediction_id", "n", "prediction"]
    assert few["n"].to_pylist() == [1, 1, 2, 2, 3]


def test_a_column_of_the_file_wins_over_the_folders(tmp_path: Path) -> None:
    place = tmp_path / "in" / "n=9"
    place.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1.0], "n": [2]}), place / "a.parquet")
    run_batch(batch_config(tmp_path, log=False), sum_scorer((FEATURES[0], Feature("n", "long"))))
    assert pq.ParquetFile(tmp_path / "out" / "n=9" / "a.parquet").read()["prediction"].to_pylist() == [3.0]


@pytest.fixture
def database(tmp_path: Path) -> str:
    with closing(sqlite3.connect(tmp_path / "flights.db")) as connection:
        connection.execute(
            "CREATE TABLE flights (key TEXT, x REAL, n INTEGER, kind TEXT, at TEXT, note TEXT)"
        )
        rows = [
            (f"k{i:04}", None if i % 7 == 3 else i, i, "ab"[i % 2], f"2013-01-{i % 28 + 1:02}", None)
            for i in range(90)
        ]
        connection.executemany("INSERT INTO flights VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    return f"sqlite:///{tmp_path}/flights.db"


def sql_config(folder: Path, database: str, **changes: object) -> BatchConfig:
    query = "SELECT * FROM flights ORDER BY key"
    return batch_config(folder, **{"input": database, "query": query, "chunk_rows": 20, **changes})


def test_the_result_of_a_query_is_scored(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_input, "_ROWS_PER_FETCH", 25)
    config = sql_config(tmp_path, database, id_column="key", timestamp_column="at")
    result = run_batch(config, sum_scorer())
    assert result.rows_out == 90
    assert result.outputs == (str(tmp_path / "out" / "query.parquet"),)
    out = answers(tmp_path / "out")
    assert out["key"].to_pylist() == [f"k{i:04}" for i in range(90)]
    assert out["prediction"].to_pylist() == [i if i % 7 == 3 else 2 * i for i in range(90)]
    times = {row["client_request_id"]: row["event_time"] for row in logged(config).to_pylist()}
    assert str(times["k0030"]) == "2013-01-03 00:00:00+00:00"
    assert not list((tmp_path / "state").rglob("*.input.parquet"))


def test_a_query_that_goes_on_reads_the_rows_that_it_began_with(tmp_path: Path, database: str) -> None:
    features = (*FEATURES, Feature("fail", "double", required=False))
    config = sql_config(tmp_path, database, output=f"delta:{tmp_path}/answers", commit_rows=20)

    def stop(progress: BatchProgress) -> None:
        if progress.rows >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(config, sum_scorer(features), stop)
    with closing(sqlite3.connect(tmp_path / "flights.db")) as connection:
        connection.execute("DELETE FROM flights WHERE n % 2 = 0")
        connection.commit()
    assert run_batch(config, sum_scorer(features)).rows_out == 90
    out = DeltaTable(str(tmp_path / "answers")).to_pyarrow_table()
    assert sorted(out["key"].to_pylist()) == [f"k{i:04}" for i in range(90)]
    assert logged(config).num_rows == 90


def test_what_is_wrong_with_a_query_is_said_without_secrets(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, complaint in (
        ({"query": "SELECT * FROM nowhere"}, "no such table"),
        ({"query": "SELECT key AS x, n FROM flights"}, "column 'x' of the query's result must be double"),
        ({"query": "SELECT n FROM flights"}, r"feature 'x' \(double\) is missing"),
        ({"input": "sqlite:///${NO_SUCH_VARIABLE}"}, "'NO_SUCH_VARIABLE'.*not set"),
    ):
        with pytest.raises(BadInput, match=complaint):
            run_batch(sql_config(tmp_path, database, job_id=complaint, **changes), sum_scorer())
    monkeypatch.setenv("HIDDEN", f"{tmp_path}/no/such/folder")
    with pytest.raises(Unavailable) as error:
        run_batch(sql_config(tmp_path, "sqlite:///${HIDDEN}/a.db", job_id="hidden"), sum_scorer())
    assert "${HIDDEN}" in error.value.message and "such/folder" not in error.value.message
    with pytest.raises(BadInput, match="password.*environment variable") as refused:
        sql_input.check_sql_url("postgresql://me:secret@host/db")
    assert "secret" not in refused.value.message
    sql_input.check_sql_url("postgresql+psycopg://me:${DB_PASSWORD}@host/db")


def test_tables_and_answers_may_be_delta_tables_in_a_store(s3: str, tmp_path: Path) -> None:
    place = f"{s3}/{uuid.uuid4().hex}"
    pq.write_table(sum_rows(130), tmp_path / "a.parquet")
    config = batch_config(
        tmp_path,
        input=str(tmp_path / "a.parquet"),
        output=f"delta:{place}/answers",
        tables=f"{place}/tables",
        timestamp_column="when",
        chunk_rows=20,
        commit_rows=40,
    )
    assert run_batch(config, sum_scorer()).rows_out == 130
    assert run_batch(config, sum_scorer()).rows_out == 130
    out = DeltaTable(f"{place}/answers").to_pyarrow_table()
    assert sorted(out["key"].to_pylist()) == sum_rows(130)["key"].to_pylist()
    assert logged(config).num_rows == 130
    read_by = DeltaLog(f"{place}/tables/sum/predictions").dataset().filesystem
    assert isinstance(read_by.base_fs, fs.S3FileSystem), (
        "no Python, for whose lock DuckDB and Arrow's threads would wait"
    )
    assert [table_files(f"{kind}://flights/{uuid.uuid4().hex}") for kind in ("s3", "memory")] == [None, None]
