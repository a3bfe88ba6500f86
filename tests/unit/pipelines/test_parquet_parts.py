"""What is compressed, and has a dictionary or bounds, depends on the values; what is read again does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.parquet_parts import open_parquet


def test_only_what_gets_smaller_is_compressed(tmp_path: Path) -> None:
    n = 8192
    noise = np.random.default_rng(5).normal(size=n)
    rows = pa.table(
        {
            "feature.noise": noise,
            "falling": np.sort(noise)[::-1],
            "sparse": pa.array(noise, mask=np.arange(n) % 2 == 0),
            "cents": np.arange(n) / 4,
            "few": np.arange(n) % 3 / 7,
            "nothing": pa.nulls(n, pa.float64()),
            "id": [f"job:{i}" for i in range(n)],
            "proba": pa.array([[0.25, 0.75]] * n),
            "place": pa.array([{"x": 1.0, "y": [1, 2]}] * n),
        }
    )
    with open_parquet(tmp_path / "a.parquet", rows) as writer:
        writer.write_table(rows)
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        group = file.metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        plain = {column.path_in_schema for column in columns if column.compression == "UNCOMPRESSED"}
        assert plain == {"feature.noise", "falling", "sparse"}
        assert {column.compression for column in columns} == {"UNCOMPRESSED", "SNAPPY"}
        unbounded = {column.path_in_schema for column in columns if column.statistics is None}
        assert unbounded == {"feature.noise", "sparse"}, "no reader can pass over numbers in no order"
        assert file.read().equals(rows)
    empty = rows.slice(0, 0)
    with open_parquet(tmp_path / "b.parquet", empty) as writer:
        writer.write_table(empty)
    assert pq.read_table(tmp_path / "b.parquet").schema.names == rows.schema.names
