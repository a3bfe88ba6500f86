"""Rows of a training set: what is kept, what each counts, and that the same comes out again."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.lineage import TrainingSetSpec
from mlflow_flywheel.pipelines.training_files import EVENT_TIME, LABEL
from mlflow_flywheel.pipelines.training_rows import bounded, since, thinned, weights

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
UTC = pa.timestamp("us", tz="UTC")


def recipe(**changes: object) -> TrainingSetSpec:
    values = {"model": "m", "parent_version": "1", "start": START, "as_of": START + timedelta(days=100)}
    return TrainingSetSpec.model_validate({**values, "known_at": START, **changes})


def rows(labels: list[object], days: list[float | None] | None = None) -> pa.Table:
    found = days if days is not None else [float(i) for i in range(len(labels))]
    times = [None if d is None else START + timedelta(days=d) for d in found]
    return pa.table({"row": range(len(labels)), LABEL: labels, EVENT_TIME: pa.array(times, UTC)})


def test_the_newest_rows_are_kept_or_a_draw_that_the_seed_decides() -> None:
    table = rows([0.0] * 300)
    assert bounded(table, recipe(max_rows=100))["row"].to_pylist() == list(range(200, 300))
    drawn = bounded(table, recipe(max_rows=100, rows_kept="random"))["row"].to_pylist()
    assert drawn == sorted(set(drawn)) and len(drawn) == 100 and min(drawn) < 50
    assert bounded(table, recipe(max_rows=100, rows_kept="random"))["row"].to_pylist() == drawn
    assert bounded(table, recipe(max_rows=100, rows_kept="random", seed=1))["row"].to_pylist() != drawn


@given(st.lists(st.sampled_from("aab"), min_size=1, max_size=80), st.floats(1, 4))
def test_frequent_classes_are_drawn_from_and_rare_ones_kept(labels: list[str], ratio: float) -> None:
    """A balanced table stays as it is."""
    by_recipe = recipe(class_balance="downsample", class_ratio=ratio)
    kept = thinned(rows(list(labels)), by_recipe)
    before, after = Counter(labels), Counter(kept[LABEL].to_pylist())
    rarest = min(before.values())
    assert after == {name: min(n, int(rarest * ratio)) for name, n in before.items()}
    assert kept["row"].to_pylist() == sorted(kept["row"].to_pylist())
    assert thinned(kept, by_recipe).equals(kept)


def test_a_row_counts_half_for_each_half_life_and_an_undated_one_is_as_old_as_the_window() -> None:
    found = weights(rows([0.0] * 4, [20.0, None, 10.0, 0.0]), recipe(half_life=timedelta(days=10)))
    assert found is not None
    np.testing.assert_allclose(found / found[0], [1, 0.25, 0.5, 0.25], rtol=1e-8)
    assert found.mean() == pytest.approx(1)
    assert weights(rows([0.0]), recipe()) is None


def test_balanced_classes_count_the_same_in_total_also_when_rows_fade() -> None:
    labels = ["rare"] * 3 + ["often"] * 27
    for half_life in (None, timedelta(days=5)):
        found = weights(rows(list(labels)), recipe(class_balance="weights", half_life=half_life))
        assert found is not None and found.mean() == pytest.approx(1)
        assert found[:3].sum() == pytest.approx(found[3:].sum())


def test_labels_that_are_no_classes_cannot_be_balanced() -> None:
    for way in ("weights", "downsample"):
        with pytest.raises(BadInput, match=r"1,500 different labels are no classes .*class_balance=none"):
            made = recipe(class_balance=way)
            weights(thinned(rows([float(i) for i in range(1500)]), made), made)


def test_a_window_ends_before_its_end_and_the_whole_one_has_the_undated_rows() -> None:
    table = rows([0.0] * 5, [None, 1.0, 7.0, 9.0, 10.0])
    end = START + timedelta(days=10)
    assert since(table, timedelta(days=3), end)["row"].to_pylist() == [2, 3]
    assert since(table, None, end)["row"].to_pylist() == [0, 1, 2, 3]
