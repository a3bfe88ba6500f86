"""A batch job that is killed at random points and started again has answered and logged each row once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from support.batches import REF, answers, batch_config, logged, sum_rows

from mlflow_flywheel.pipelines.inference_table import InferenceTable

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_each_row_once_in_output_and_table_whenever_it_is_killed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    rows = 0
    for i, size in enumerate((200, 90, 210, 50)):
        pq.write_table(sum_rows(size, rows), tmp_path / "in" / f"{i}.parquet")
        rows += size
    output = f"delta:{tmp_path}/answers" if kind == "delta" else str(tmp_path / "out")
    config = batch_config(tmp_path, output=output, chunk_rows=40, id_column="key", incremental=True)
    config.save(tmp_path / "job.json")
    command = [sys.executable, "-m", "support.killed_batch", str(tmp_path / "job.json"), "7", "10"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "too few attempts were killed to prove anything"

    out = (
        DeltaTable(str(tmp_path / "answers")).to_pyarrow_table()
        if kind == "delta"
        else answers(tmp_path / "out")
    )
    assert sorted(out["key"].to_pylist()) == sum_rows(rows)["key"].to_pylist()
    counts = InferenceTable.open(config.tables, REF.name).counts()
    assert (counts.rows, counts.distinct_ids) == (rows, rows)
    same = ["prediction_id", "prediction"]
    assert out.select(same).sort_by("prediction_id").equals(logged(config).select(same).combine_chunks())
    leftovers = (
        [p for p in (tmp_path / "out").rglob("*") if p.suffix != ".parquet"] if kind == "parquet" else []
    )
    assert leftovers == []
    assert pa.compute.count_distinct(out["prediction_id"]).as_py() == rows
