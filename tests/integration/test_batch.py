"""Batch jobs over real files and real Delta tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from support.batches import FEATURES, REF, answers, batch_config, logged, sum_rows, sum_scorer
from support.models import ZooModel

from mlflow_flywheel.pipelines.batch import BatchProgress, run_batch
from mlflow_flywheel.pipelines.errors import BadInput, ModelError, NotFound, Unavailable
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.schema import Feature


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def write_parquet(folder: Path, *sizes: int) -> None:
    first = 0
    for i, size in enumerate(sizes):
        pq.write_table(sum_rows(size, first), folder / "in" / f"{i}.parquet")
        first += size


def test_answers_and_table_have_every_row_with_what_it_came_with(folder: Path) -> None:
    write_parquet(folder, 100, 30)
    told: list[BatchProgress] = []
    config = batch_config(folder, id_column="key", timestamp_column="when", chunk_rows=40)
    result = run_batch(config, sum_scorer(), told.append)
    assert (result.rows_in, result.rows_out, result.files) == (130, 130, 2)
    assert [Path(path).name for path in result.outputs] == ["0.parquet", "1.parquet"]
    assert (told[-1].rows, told[-1].files_done, told[-1].files) == (130, 2, 2)

    rows, out = sum_rows(130), answers(folder / "out")
    assert out.column_names == ["prediction_id", *rows.column_names, "prediction"]
    assert out.select(rows.column_names).equals(rows)
    expected = [(x or 0) + n for x, n in zip(rows["x"].to_pylist(), rows["n"].to_pylist(), strict=True)]
    assert out["prediction"].to_pylist() == expected

    table = logged(config)
    by_id = dict(zip(table["prediction_id"].to_pylist(), table.to_pylist(), strict=True))
    assert len(by_id) == table.num_rows == 130
    for row in out.to_pylist():
        found = by_id[row["prediction_id"]]
        assert found["client_request_id"] == row["key"]
        assert found["event_time"] == row["when"]
        assert found["prediction"] == row["prediction"]
        assert (found["feature.x"], found["feature.n"], found["feature.kind"]) == (
            row["x"],
            row["n"],
            row["kind"],
        )
        assert (found["deployment"], found["mode"], found["model_version"]) == ("nightly", "batch", "1")


def test_all_formats_give_equal_answers(folder: Path) -> None:
    rows = sum_rows(57)
    inputs = folder / "in"
    pq.write_table(rows, inputs / "a.parquet")
    pacsv.write_csv(rows.drop_columns(["when"]), inputs / "b.csv")
    with pa.output_stream(str(inputs / "c.csv.gz"), compression="gzip") as out:
        pacsv.write_csv(rows.drop_columns(["when"]), out)
    lines = "".join(json.dumps(row, default=str) + "\n" for row in rows.to_pylist())
    (inputs / "d.jsonl").write_text(lines)
    write_deltalake(str(folder / "delta"), rows.slice(0, 30))
    write_deltalake(str(folder / "delta"), rows.slice(30), mode="append")

    run_batch(batch_config(folder, chunk_rows=20), sum_scorer())
    config = batch_config(
        folder,
        chunk_rows=20,
        job_id="job-2",
        input=str(folder / "delta"),
        output=str(folder / "out" / "e.parquet"),
    )
    assert run_batch(config, sum_scorer()).rows_out == 57
    outputs = sorted((folder / "out").iterdir())
    assert len(outputs) == 5
    expected = pq.read_table(outputs[0]).select(["key", "prediction"]).sort_by("key")
    for path in outputs[1:]:
        found = pq.read_table(path).select(["key", "prediction"])
        assert found.sort_by("key").equals(expected), path.name
    assert logged(config).num_rows == 5 * 57


def test_delta_out_has_each_row_once_and_takes_columns_that_are_new(folder: Path) -> None:
    write_parquet(folder, 50)
    first = batch_config(folder, output=f"delta:{folder}/answers", passthrough=("key",), chunk_rows=20)
    assert run_batch(first, sum_scorer()).outputs == (str(folder / "answers"),)
    run_batch(first, sum_scorer())
    found = DeltaTable(str(folder / "answers")).to_pyarrow_table()
    assert found.num_rows == 50
    assert set(found.column_names) == {"prediction_id", "key", "prediction"}

    second = batch_config(folder, output=str(folder / "answers"), job_id="job-2")
    run_batch(second, sum_scorer())
    both = DeltaTable(str(folder / "answers")).to_pyarrow_table()
    assert both.num_rows == 100
    assert len(set(both["prediction_id"].to_pylist())) == 100
    assert both["when"].null_count == 50


def test_only_new_files_are_scored_by_incremental_jobs(folder: Path) -> None:
    write_parquet(folder, 10, 20)

    def night(number: int) -> int:
        config = batch_config(folder, job_id=f"night-{number}", incremental=True)
        return run_batch(config, sum_scorer()).rows_out

    assert night(1) == 30
    assert night(2) == 0
    pq.write_table(sum_rows(7, 500), folder / "in" / "new.parquet")
    assert night(3) == 7
    assert night(3) == 7  # the same job again: it is done, and says what it did
    pq.write_table(sum_rows(11, 600), folder / "in" / "0.parquet")
    assert night(4) == 11
    assert run_batch(batch_config(folder, job_id="all"), sum_scorer()).rows_out == 38
    assert night(5) == 0
    config = batch_config(folder)
    counts = InferenceTable.open(config.tables, REF.name).counts()
    assert (counts.rows, counts.duplicates) == (30 + 7 + 11 + 38, 0)


def test_an_incremental_job_may_find_an_empty_folder_and_no_model_is_loaded_for_it(folder: Path) -> None:
    assert run_batch(batch_config(folder, incremental=True)).files == 0
    with pytest.raises(BadInput, match="holds no Parquet"):
        run_batch(batch_config(folder, job_id="job-2"))
    write_deltalake(str(folder / "delta"), sum_rows(3))
    with pytest.raises(BadInput, match="Delta table"):
        run_batch(batch_config(folder, job_id="job-3", incremental=True, input=str(folder / "delta")))


def test_a_file_that_does_not_fit_stops_the_job_before_anything_is_scored(folder: Path) -> None:
    write_parquet(folder, 10)
    bad = folder / "in" / "z.csv"
    for content, complaint in (
        ("n,kind\n1,a\n", r"z\.csv.*feature 'x' \(double\) is missing.*needs: x, n, kind"),
        ("x,n\nmany,1\n", r"z\.csv.*column 'x' must be double, found.*many"),
    ):
        bad.write_text(content)
        with pytest.raises(BadInput, match=complaint):
            run_batch(batch_config(folder), sum_scorer())
    pq.write_table(pa.table({"x": ["1"], "n": [1]}), folder / "in" / "y.parquet")
    with pytest.raises(BadInput, match=r"y\.parquet.*column 'x' must be double, found string"):
        run_batch(batch_config(folder), sum_scorer())
    assert not (folder / "out").exists()
    assert not (folder / "tables").exists()
    for path in (bad, folder / "in" / "y.parquet"):
        path.unlink()
    assert run_batch(batch_config(folder), sum_scorer()).rows_out == 10


def test_a_file_that_fails_half_way_leaves_no_output(folder: Path) -> None:
    features = (*FEATURES, Feature("fail", "double"))
    rows = sum_rows(50).append_column("fail", pa.array([float(i == 45) for i in range(50)]))
    pq.write_table(rows, folder / "in" / "a.parquet")
    config = batch_config(folder, chunk_rows=20, job_id="bad")
    with pytest.raises(ModelError, match=r"a\.parquet.*asked to fail"):
        run_batch(config, sum_scorer(features))
    assert list((folder / "out").iterdir()) == []


def test_a_column_named_like_ours_is_refused_unless_it_is_left_out(folder: Path) -> None:
    rows = sum_rows(3).append_column("prediction", pa.array([1.0, 2.0, 3.0]))
    pq.write_table(rows, folder / "in" / "a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet.*'prediction'.*passthrough"):
        run_batch(batch_config(folder), sum_scorer())
    run_batch(batch_config(folder, job_id="job-2", passthrough=("key",)), sum_scorer())
    assert answers(folder / "out").column_names == ["prediction_id", "key", "prediction"]


def test_a_finished_job_is_done_again_only_where_its_output_is_gone(folder: Path) -> None:
    write_parquet(folder, 10, 10)
    config = batch_config(folder)
    run_batch(config, sum_scorer())
    (folder / "out" / "1.parquet").unlink()
    kept = (folder / "out" / "0.parquet").stat().st_mtime_ns
    assert run_batch(config, sum_scorer()).rows_out == 20
    assert answers(folder / "out").num_rows == 20
    assert (folder / "out" / "0.parquet").stat().st_mtime_ns == kept
    assert logged(config).num_rows == 20


def test_a_job_goes_on_only_as_it_began(folder: Path) -> None:
    write_parquet(folder, 10)
    run_batch(batch_config(folder), sum_scorer())
    with pytest.raises(BadInput, match="chunk_rows=65536"):
        run_batch(batch_config(folder, chunk_rows=5), sum_scorer())
    other = REF.model_copy(update={"version": "2"})
    with pytest.raises(BadInput, match="given model sum version 1"):
        run_batch(batch_config(folder, model=other), sum_scorer())
    with pytest.raises(BadInput, match="model sum version 1.*version 2"):
        run_batch(batch_config(folder, model=other), sum_scorer(ref=other))


def test_two_starts_of_one_job_do_not_overlap(folder: Path) -> None:
    write_parquet(folder, 10)
    config = batch_config(folder, incremental=True)
    complaints = []

    def start_again(_: BatchProgress) -> None:
        for again in (config, config.model_copy(update={"job_id": "other"})):
            with pytest.raises(Unavailable, match="running already") as error:
                run_batch(again, sum_scorer())
            complaints.append(error.value.message)

    run_batch(config, sum_scorer(), start_again)
    assert "'job-1'" in complaints[0]
    assert "deployment 'nightly'" in complaints[1]


def test_without_logging_no_table_is_made(folder: Path) -> None:
    write_parquet(folder, 10)
    run_batch(batch_config(folder, log=False), sum_scorer())
    assert not (folder / "tables").exists()


def test_header_only_files_are_answered_with_no_rows(folder: Path) -> None:
    (folder / "in" / "a.csv").write_text("x,n,kind\n")
    write_parquet(folder, 10)
    out = f"delta:{folder}/answers"
    assert run_batch(batch_config(folder), sum_scorer()).rows_out == 10
    empty = pq.read_table(folder / "out" / "a.csv.parquet")
    assert (empty.num_rows, empty.column_names) == (0, ["prediction_id", "x", "n", "kind", "prediction"])
    assert run_batch(batch_config(folder, job_id="job-2", output=out), sum_scorer()).rows_out == 10
    assert DeltaTable(str(folder / "answers")).to_pyarrow_table().num_rows == 10


def test_the_command_runs_a_job_and_says_what_is_wrong(folder: Path, zoo: Callable[[str], ZooModel]) -> None:
    model = zoo("mixed")
    pq.write_table(pa.Table.from_pandas(model.rows.head(50)), folder / "in" / "a.parquet")
    config = batch_config(folder, model=model.ref)

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlflow_flywheel.pipelines.batch", "--config", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    config.save(folder / "job.json")
    done = run(folder / "job.json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows_out"] == 50
    assert answers(folder / "out").num_rows == logged(config).num_rows == 50

    config.model_copy(update={"input": str(folder / "nothing.csv"), "job_id": "job-2"}).save(
        folder / "job.json"
    )
    failed = run(folder / "job.json")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: input '")
    assert "Traceback" not in failed.stderr


def test_an_input_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.parquet"):
        run_batch(batch_config(folder, input=str(folder / "nowhere.parquet")), sum_scorer())


def test_a_run_never_mixes_versions_of_the_model(folder: Path) -> None:
    write_parquet(folder, 100)
    config = batch_config(folder, chunk_rows=10, commit_rows=20, output=f"delta:{folder}/answers")

    def stop(progress: BatchProgress) -> None:
        if progress.rows >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(config, sum_scorer(), stop)
    begun = logged(config).num_rows
    assert 0 < begun < 100
    newer = REF.model_copy(update={"version": "2"})
    with pytest.raises(BadInput, match="version 1.*cannot go on with.*version 2"):
        run_batch(config.model_copy(update={"model": newer}), sum_scorer(ref=newer, factor=2.0))
    scored = []
    counting = sum_scorer()
    call = counting._call
    counting._call = lambda frame, params: scored.append(len(frame)) or call(frame, params)  # type: ignore[func-returns-value]
    assert run_batch(config, counting).rows_out == 100
    assert sum(scored) < 100, "what both tables have is not scored again"
    assert logged(config)["model_version"].unique().to_pylist() == ["1"]
    out = DeltaTable(str(folder / "answers")).to_pyarrow_table()
    assert sorted(out["key"].to_pylist()) == sum_rows(100)["key"].to_pylist()
    assert logged(config).num_rows == 100


def test_a_delta_output_of_somebody_else_keeps_its_partitions(folder: Path) -> None:
    write_parquet(folder, 50)
    first = (
        sum_rows(1)
        .append_column("prediction_id", pa.array(["theirs"]))
        .append_column("prediction", pa.array([1.0]))
    )
    write_deltalake(str(folder / "answers"), first, partition_by=["kind"])
    config = batch_config(folder, output=str(folder / "answers"), chunk_rows=20)
    run_batch(config, sum_scorer())
    table = DeltaTable(str(folder / "answers"))
    assert table.metadata().partition_columns == ["kind"]
    rows = table.to_pyarrow_table()
    assert rows.num_rows == 51
    assert {str(kind) for kind in rows["kind"].to_pylist()} == {"a", "b", "None"}


def test_logged_rows_lie_in_the_partition_of_their_event_and_can_be_skipped_by_time(folder: Path) -> None:
    rows = sum_rows(300)
    days = pa.array([1_357_000_000_000_000 + i % 7 * 86_400_000_000 for i in range(300)]).cast(
        rows["when"].type
    )
    pq.write_table(rows.set_column(4, "when", days), folder / "in" / "a.parquet")
    config = batch_config(folder, timestamp_column="when", chunk_rows=40, commit_rows=120)
    run_batch(config, sum_scorer())
    table = InferenceTable.open(config.tables, REF.name)
    found = pa.table(DeltaTable(table.predictions.uri).get_add_actions(flatten=True)).to_pylist()
    assert sum(action["num_records"] for action in found) == 300
    assert len({action["partition.event_date"] for action in found}) == 7
    assert all(action["min.event_time"].date() == action["partition.event_date"] for action in found)
    assert {action["min.model_version"] for action in found} == {"1"}
    third = sorted({time.as_py() for time in days})[2]
    assert table.read(start=third, end=third + timedelta(seconds=1)).num_rows == 43


def test_a_share_of_the_rows_and_not_all_features_are_logged(folder: Path) -> None:
    write_parquet(folder, 400)
    config = batch_config(folder, log_sample=0.25, log_exclude=("kind",), chunk_rows=50)
    assert run_batch(config, sum_scorer()).rows_out == 400
    table = logged(config)
    assert 50 < table.num_rows < 150
    assert table["sampling_fraction"].unique().to_pylist() == [0.25]
    assert table["feature.kind"].null_count == table.num_rows
    assert answers(folder / "out")["kind"].null_count < 400
    with pytest.raises(BadInput, match="log_exclude='knid' is no feature"):
        run_batch(batch_config(folder, job_id="b", log_exclude=("knid",)), sum_scorer())
