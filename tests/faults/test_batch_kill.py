"""A batch job that is killed at random points and started again has answered and logged each row once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from support.batches import REF, answers, batch_config, logged, sum_rows, sum_scorer

from mlflow_flywheel.pipelines.batch import run_batch
from mlflow_flywheel.pipelines.inference_table import InferenceTable

TESTS = Path(__file__).parent.parent
SIZES = (200, 90, 410, 50)
ROWS = sum(SIZES)
BAD = (3, 205, 206, 400, 749)


def write_parquet(folder: Path) -> None:
    first = 0
    for i, size in enumerate(SIZES):
        pq.write_table(sum_rows(size, first), folder / f"{i}.parquet")
        first += size


def write_csv_with_odd_rows(folder: Path) -> None:
    first = 0
    for i, size in enumerate(SIZES):
        rows = sum_rows(size, first).drop_columns(["when"])
        odd = [str(n) if n not in BAD else "odd" for n in rows["n"].to_pylist()]
        pacsv.write_csv(rows.set_column(2, "n", pa.array(odd)), folder / f"{i}.csv")
        first += size


@pytest.mark.parametrize("kind", ["parquet", "delta", "rejects", "delta-rejects"])
def test_each_row_once_in_output_and_table_whenever_it_is_killed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    skips = "rejects" in kind
    write_csv_with_odd_rows(tmp_path / "in") if skips else write_parquet(tmp_path / "in")
    config = batch_config(
        tmp_path,
        output=f"delta:{tmp_path}/out" if "delta" in kind else str(tmp_path / "out"),
        chunk_rows=20,
        commit_rows=60,
        threads=3,
        id_column="key",
        incremental=True,
        watermark="n" if kind == "delta" else None,
        on_error="skip" if skips else "fail",
    )
    config.save(tmp_path / "job.json")
    seed = int(os.environ.get("FLYWHEEL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"FLYWHEEL_SEED={seed}")
    command = [sys.executable, "-m", "support.killed_batch", str(tmp_path / "job.json"), str(seed), "8"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2, "too few attempts were killed to prove anything"

    out = (
        DeltaTable(str(tmp_path / "out")).to_pyarrow_table() if "delta" in kind else answers(tmp_path / "out")
    )
    keys = sum_rows(ROWS)["key"].to_pylist()
    expected = [key for i, key in enumerate(keys) if not (skips and i in BAD)]
    assert sorted(out["key"].to_pylist()) == expected
    counts = InferenceTable.open(config.tables, REF.name).counts()
    assert (counts.rows, counts.distinct_ids) == (len(expected), len(expected))
    same = ["prediction_id", "prediction"]
    found = out.select(same).sort_by("prediction_id").combine_chunks()
    assert found.equals(logged(config).select(same).combine_chunks())
    if kind == "delta":
        marks = [
            json.loads(line) for line in (tmp_path / "state" / "watermark.jsonl").read_text().splitlines()
        ]
        assert marks == [{"column": "n", "job": "job-1", "mark": ROWS - 1}]
        pq.write_table(sum_rows(SIZES[0] + 9, ROWS - SIZES[0]), tmp_path / "in" / "0.parquet")
        assert run_batch(config.model_copy(update={"job_id": "job-2"}), sum_scorer()).rows_out == 9
    if skips:
        lines = [
            line for path in (tmp_path / "out").rglob("*.jsonl") for line in path.read_text().splitlines()
        ]
        assert sorted(json.loads(line)["record"]["key"] for line in lines) == [keys[i] for i in BAD]
    assert not list((tmp_path / "out").rglob("*.partial"))
    referenced = set(
        DeltaTable(str(InferenceTable.open(config.tables, REF.name).predictions.uri)).file_uris()
    )
    files = {
        str(path) for path in (tmp_path / "tables").rglob("part-*.parquet") if "predictions" in str(path)
    }
    assert files == referenced, "an attempt that died left files that no later one replaced"
