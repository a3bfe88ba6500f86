"""What never reaches the inference table: excluded features, and rows beyond the share."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cores import SCHEMA, tiny_core, tiny_request, tiny_scorer
from support.web import web_config

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.ids import shadow_prediction_id
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.log_filters import (
    RedactedLog,
    SampledLog,
    check_excluded,
    is_sampled,
    open_log,
)
from mlflow_flywheel.pipelines.scoring import ScoredBatch


class Kept:
    def __init__(self) -> None:
        self.batches: list[ScoredBatch] = []

    def append(self, batch: ScoredBatch) -> None:
        self.batches.append(batch)


def test_an_excluded_feature_is_null_in_both_forms_and_known_to_the_model() -> None:
    kept = Kept()
    scored = tiny_core(RedactedLog(kept, ["city"])).score(tiny_request(5))
    (logged,) = kept.batches
    assert logged.columns()["feature.city"] == [None] * 5
    assert logged.rows.column("feature.city").null_count == 5
    assert logged.columns()["feature.x"] == scored.columns()["feature.x"]
    assert logged.rows.schema == scored.rows.schema
    assert scored.columns()["feature.city"] != [None] * 5


def test_the_share_is_written_and_the_choice_is_the_same_each_time() -> None:
    ids = [f"id-{n}" for n in range(1000)]
    runs = []
    for size in (1000, 1):  # however rows are joined
        kept = Kept()
        core = tiny_core(SampledLog(kept, 0.25))
        whole = tiny_request(1000, ids)
        for start in range(0, 1000, size):
            core.score(whole.take(range(start, start + size)))
        columns = [batch.columns() for batch in kept.batches]
        assert {batch.constants["sampling_fraction"] for batch in kept.batches} == {0.25}
        runs.append(
            [
                row
                for c in columns
                for row in zip(c["prediction_id"], c["feature.x"], c["prediction"], strict=True)
            ]
        )
    assert runs[0] == runs[1]
    assert 200 < len(runs[0]) < 300
    assert all(x == int(name.removeprefix("id-")) - 500 and y == (x > 0) for name, x, y in runs[0])


def test_the_callers_key_decides_where_there_is_one() -> None:
    chosen = next(f"k-{n}" for n in range(100) if is_sampled(f"k-{n}", 0.1))
    left = next(f"k-{n}" for n in range(100) if not is_sampled(f"k-{n}", 0.1))
    kept = Kept()
    ids = [next(f"p-{n}" for n in range(100) if is_sampled(f"p-{n}", 0.1)), "b", "c"]
    tiny_core(SampledLog(kept, 0.1)).score(tiny_request(3, ids, [None, chosen, left]))
    assert kept.batches[0].columns()["client_request_id"] == [None, chosen]
    tiny_core(SampledLog(kept, 0.1)).score(tiny_request(1, ids[1:2], [left]))
    assert len(kept.batches) == 1, "a request without a row to log is not logged at all"


def test_a_row_and_its_shadow_are_kept_together() -> None:
    ids = [f"p-{n}" for n in range(50)]
    kept = Kept()
    core = tiny_core(SampledLog(kept, 0.5))
    core.score(tiny_request(50, ids))
    core.score(tiny_request(50, [shadow_prediction_id(name) for name in ids]))
    answered, shadows = (batch.prediction_ids for batch in kept.batches)
    assert shadows == [shadow_prediction_id(name) for name in answered] and 0 < len(shadows) < 50


@given(st.text(), st.floats(0.0001, 1), st.floats(0.0001, 1))
def test_a_smaller_share_is_part_of_a_larger_one(key: str, one: float, other: float) -> None:
    assert not is_sampled(key, min(one, other)) or is_sampled(key, max(one, other))


def test_an_unknown_feature_is_named_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"log_exclude='citty' .*did you mean 'city'\?"):
        check_excluded(["x", "citty"], SCHEMA)


def _rows(folder: Path, **more: Any) -> list[dict[str, Any]]:
    config = web_config(folder, ModelRef(name="tiny", version="1", path=""), **more)
    with ExitStack() as parts:
        tiny_core(open_log(config, tiny_scorer(), parts)).score(
            tiny_request(40, [f"i{n}" for n in range(40)])
        )
    tables = str(folder / "tables")
    Committer(folder / "spool", tables).commit_once()
    table = InferenceTable.open(tables, "tiny")
    return table.read().to_pylist() if table.exists else []


def test_both_reach_the_table(tmp_path: Path) -> None:
    rows = _rows(tmp_path, log_exclude=("x", "city"), log_sample=0.5)
    assert {row["prediction_id"] for row in rows} == {f"i{n}" for n in range(40) if is_sampled(f"i{n}", 0.5)}
    assert {(row["feature.x"], row["feature.city"], row["sampling_fraction"]) for row in rows} == {
        (None, None, 0.5)
    }


def test_a_challenger_that_lacks_the_feature_is_logged_all_the_same(tmp_path: Path) -> None:
    rows = _rows(tmp_path, log_exclude=("gone", "x"))
    assert len(rows) == 40 and {row["feature.x"] for row in rows} == {None}


def test_without_filters_and_without_a_log(tmp_path: Path) -> None:
    assert {row["sampling_fraction"] for row in _rows(tmp_path / "all")} == {1.0}
    assert _rows(tmp_path / "none", log=False) == []
