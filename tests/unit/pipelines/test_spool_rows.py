"""Spool lines become rows of the table; one that does not fit never holds up the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from mlflow_flywheel.pipelines.spool_rows import Line, lines_to_table

SCHEMA = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("deployment", pa.string()),
        ("request_time", pa.timestamp("us", "UTC")),
        ("event_time", pa.timestamp("us", "UTC")),
        ("feature.n", pa.float64()),
    ]
)


def _line(*ids: str, n: list[Any] | None = None, keep: list[int] | None = None) -> Line:
    columns = {"prediction_id": list(ids), "feature.n": n or [1] * len(ids)}
    line = {"k": {"deployment": "d", "request_time": 5}, "c": columns}
    return line, range(len(ids)) if keep is None else keep


def test_lines_become_rows_and_only_the_kept_ones(tmp_path: Path) -> None:
    rows = lines_to_table([_line("a", "b", keep=[1]), _line("c", keep=[]), _line("d")], SCHEMA, tmp_path)
    assert rows is not None
    assert rows.column("prediction_id").to_pylist() == ["b", "d"]
    assert rows.column("event_time") == rows.column("request_time")
    assert lines_to_table([_line("c", keep=[])], SCHEMA, tmp_path) is None


def test_an_integer_that_no_double_holds_becomes_the_nearest_one(tmp_path: Path) -> None:
    rows = lines_to_table([_line("a", "b", n=[2**62 + 1, None])], SCHEMA, tmp_path)
    assert rows is not None
    assert rows.column("feature.n").to_pylist() == [float(2**62), None]


def test_a_line_that_does_not_fit_is_kept_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    odd = [_line("b", n=[{"a": 1}]), _line("c", n=["three"])]
    unknown: Line = ({"k": {"request_time": 5}, "c": {"prediction_id": ["d"], "feature.other": [1]}}, [0])
    rows = lines_to_table([_line("a"), *odd, unknown, _line("e")], SCHEMA, tmp_path)
    assert rows is not None
    assert rows.column("prediction_id").to_pylist() == ["a", "e"]
    kept = [orjson.loads(line) for line in (tmp_path / "refused.jsonl").read_bytes().splitlines()]
    assert kept == [odd[0][0], odd[1][0], unknown[0]]
