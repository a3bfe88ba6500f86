"""Choosing a training window: by later rows only, all windows on the same ones, and why one could not be judged."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mlflow_flywheel.pipelines.errors import ModelError
from mlflow_flywheel.pipelines.scores import Scores
from mlflow_flywheel.pipelines.training_files import EVENT_TIME, LABEL
from mlflow_flywheel.pipelines.window_search import choose_window

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
END = START + timedelta(days=100)
WINDOWS = {"10d": timedelta(days=10), "30d": timedelta(days=30), "all": None}


def rows(turn: float, per_day: int = 10) -> pa.Table:
    """Return rows of 100 days whose label is 0, and 1 from the day `turn` on."""
    days = np.arange(100 * per_day) / per_day
    times = [START + timedelta(days=float(d)) for d in days]
    return pa.table(
        {LABEL: (days >= turn).astype(float), EVENT_TIME: pa.array(times, pa.timestamp("us", "UTC"))}
    )


def mean_model(train: pa.Table, later: pa.Table) -> Scores:
    """Predict the mean label."""
    losses = np.abs(later[LABEL].to_numpy() - train[LABEL].to_numpy().mean())
    return Scores("mae", losses, {})


def test_after_a_turn_a_short_window_is_chosen_and_without_one_the_longest() -> None:
    choice = choose_window(rows(60), WINDOWS, END, mean_model)
    assert choice.name == "10d" and list(choice.losses) == list(WINDOWS)
    assert choice.losses["10d"] < choice.losses["30d"] < choice.losses["all"]
    assert (choice.metric, choice.rows, choice.folds) == ("mae", 300, 3)
    assert str(choice).startswith("10d (mean mae on 300 rows in 3 folds: 10d 0")
    assert choose_window(rows(1000), WINDOWS, END, mean_model).name == "all"


def test_every_fold_is_predicted_from_what_was_before_it() -> None:
    seen: list[tuple[pa.Table, pa.Table]] = []

    def attempt(train: pa.Table, later: pa.Table) -> Scores:
        seen.append((train, later))
        return mean_model(train, later)

    table = rows(60)
    choose_window(table, WINDOWS, END, attempt)
    assert len(seen) == 9
    for train, later in seen:
        first = pc.min(later[EVENT_TIME]).as_py()
        assert pc.max(train[EVENT_TIME]).as_py() < first
    judged = [pa.concat_tables(later for _, later in seen[i : i + 3]) for i in (0, 3, 6)]
    assert judged[0].equals(judged[1]) and judged[0].equals(judged[2])
    assert judged[0].equals(table.slice(700))


def test_a_window_that_cannot_be_judged_is_left_out_with_the_reason() -> None:
    def refuses_short(train: pa.Table, later: pa.Table) -> Scores:
        if train.num_rows <= 300:
            raise ModelError("only one class")
        return mean_model(train, later)

    choice = choose_window(rows(60), WINDOWS | {"4d": timedelta(days=4)}, END, refuses_short)
    assert choice.name == "all" and list(choice.losses) == ["all"]
    assert choice.left_out["30d"] == "only one class" and "40 rows" in choice.left_out["4d"]
    assert "4d was left out: 40 rows before a fold" in str(choice)


@pytest.mark.parametrize("undated", [True, False])
def test_without_rows_to_judge_by_the_longest_window_is_used(undated: bool) -> None:
    table = rows(60) if undated else rows(60).slice(0, 2)
    if undated:
        table = table.set_column(1, EVENT_TIME, pa.nulls(1000, pa.timestamp("us", "UTC")))
    choice = choose_window(table, WINDOWS, END, mean_model)
    assert (choice.name, choice.losses) == ("all", {})
    assert "no window could be judged, so the longest is used" in str(choice)
