"""Training sets: nothing of the future leaks into training, and a lineage gives the same rows again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.lineage import Lineage, TrainingSet, TrainingSetSpec
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.training_files import (
    EVENT_TIME,
    LABEL,
    PREDICTION_ID,
    WEIGHT,
    content_hash,
    write_rows,
)
from mlflow_flywheel.pipelines.training_set import build_training_set, rebuild_training_set, split_by_time
from mlflow_flywheel.pipelines.training_window import TrainingWindow

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
NOW = datetime(2024, 9, 1, tzinfo=timezone.utc)  # wall clock of these tests: long after the events
UTC = pa.timestamp("us", tz="UTC")
SCHEMA = FeatureSchema(
    [Feature("x", "double"), Feature("n", "long"), Feature("kind", "string", required=False)]
)


class World:
    """An inference table to which rows and labels are added."""

    def __init__(self, folder: Path) -> None:
        self.tables = str(folder / "tables")
        self.table = InferenceTable.open(self.tables, "m")
        self.table.ensure(SCHEMA, "double")
        self._commits = itertools.count()

    def log(
        self, hours: Sequence[float], *, asked: datetime = NOW, prefix: str = "p", variant: str = "champion"
    ) -> None:
        n = len(hours)
        rows = pa.table(
            {
                "prediction_id": [f"{prefix}{i}" for i in range(n)],
                "request_time": pa.array([asked] * n, UTC),
                "event_time": pa.array([START + timedelta(hours=h) for h in hours], UTC),
                "variant": [variant] * n,
                "prediction": [0.0] * n,
                "feature.x": [float(h) for h in hours],
                "feature.n": [float(i) for i in range(n)],
                "feature.kind": [None if i % 3 else "a" for i in range(n)],
            }
        )
        assert self.table.append_predictions(rows, {"test": next(self._commits)})

    def label(
        self, ids: Sequence[str], label: float, label_time: datetime, *, received: datetime = NOW
    ) -> None:
        n = len(ids)
        rows = pa.table(
            {
                "prediction_id": list(ids),
                "label_time": pa.array([label_time] * n, UTC),
                "received_time": pa.array([received] * n, UTC),
                "label": [label] * n,
            }
        )
        assert self.table.append_feedback(rows, {"test": next(self._commits)})

    def filled(self, n: int = 400) -> World:
        """Log one row an hour, each labelled an hour after it happened."""
        self.log([float(h) for h in range(n)])
        for day in range(0, n, 24):
            ids = [f"p{i}" for i in range(day, min(day + 24, n))]
            self.label(ids, float(day % 2), START + timedelta(hours=day + 24))
        return self


def spec(**changes: object) -> TrainingSetSpec:
    values = {
        "model": "m",
        "parent_version": "1",
        "start": START - timedelta(days=1),
        "as_of": START + timedelta(days=60),
        "known_at": NOW + timedelta(seconds=1),
    }
    return TrainingSetSpec.model_validate({**values, **changes})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path).filled()


def times_of(table: pa.Table) -> list[datetime]:
    found: list[datetime] = table[EVENT_TIME].to_pylist()
    return found


def test_the_newest_labelled_rows_are_held_out(world: World, tmp_path: Path) -> None:
    made = build_training_set(spec(holdout_share=0.25), world.tables, SCHEMA, tmp_path / "set")
    train, holdout = made.train(), made.holdout()
    assert (train.num_rows, holdout.num_rows) == (300, 100)
    assert max(times_of(train)) < made.lineage.holdout_start == min(times_of(holdout))
    assert train.column_names == ["x", "n", "kind", LABEL, EVENT_TIME, PREDICTION_ID]
    assert train["n"].type == pa.int64() and train["kind"][1].as_py() is None
    assert made.lineage.features == ("x", "n", "kind")
    assert made.lineage.table_versions == world.table.versions()


@given(
    hours=st.lists(st.integers(0, 40), min_size=1, max_size=120),
    share=st.floats(0.01, 0.99),
    most=st.integers(1, 200),
    not_before=st.none() | st.integers(0, 45),
)
def test_no_training_row_happened_at_or_after_a_held_out_one(
    hours: list[int], share: float, most: int, not_before: int | None
) -> None:
    """Ties included: rows of one moment are never on both sides. No row is lost or doubled."""
    times = sorted(START + timedelta(hours=h) for h in hours)
    rows = pa.table({"row": range(len(times)), EVENT_TIME: pa.array(times, UTC)})
    bound = None if not_before is None else START + timedelta(hours=not_before)
    train, holdout = split_by_time(
        rows, spec(holdout_share=share, holdout_rows=most, holdout_not_before=bound)
    )
    assert train["row"].to_pylist() + holdout["row"].to_pylist() == list(range(len(times)))
    if train.num_rows and holdout.num_rows:
        assert max(times_of(train)) < min(times_of(holdout))
    if bound is not None and holdout.num_rows:
        assert min(times_of(holdout)) >= bound


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(as_of=st.integers(300, 450))
def test_a_label_counts_from_when_it_was_true(world: World, tmp_path: Path, as_of: int) -> None:
    """Here the labels of a day's rows are true from the end of that day on."""
    moment = START + timedelta(hours=as_of)
    made = build_training_set(spec(as_of=moment), world.tables, SCHEMA, tmp_path / "set")
    whole_days = (as_of - 1) // 24
    assert made.train().num_rows + made.holdout().num_rows == min(whole_days * 24, 400)
    assert max(times_of(made.holdout())) + timedelta(hours=1) <= START + timedelta(days=whole_days)


def test_a_label_counts_from_when_it_came(world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=" 0 labelled"):
        build_training_set(spec(known_at=NOW), world.tables, SCHEMA, tmp_path / "set")


def test_a_lineage_gives_the_same_rows_again_although_the_table_grew(world: World, tmp_path: Path) -> None:
    made = build_training_set(spec(), world.tables, SCHEMA, tmp_path / "set")
    later = NOW + timedelta(minutes=5)
    world.log([5.0, 6.0], asked=later, prefix="late")
    world.label(["late0", "late1", "p3"], 1.0, START + timedelta(days=2), received=later)
    world.label(["p7"], 1.0, START + timedelta(days=80), received=NOW)
    again = rebuild_training_set(made.lineage, world.tables, SCHEMA, tmp_path / "again")
    assert again.lineage == made.lineage
    assert content_hash(again.train()) == made.lineage.train_hash
    assert TrainingSet(tmp_path / "set").lineage == made.lineage


def test_a_table_that_was_tampered_with_is_noticed(world: World, tmp_path: Path) -> None:
    made = build_training_set(spec(), world.tables, SCHEMA, tmp_path / "set")
    world.label(["p3"], 7.0, START + timedelta(days=3), received=NOW - timedelta(seconds=1))
    with pytest.raises(BadInput, match="train hash differs"):
        rebuild_training_set(made.lineage, world.tables, SCHEMA, tmp_path / "again")


def test_rows_of_challengers_are_not_training_rows(world: World, tmp_path: Path) -> None:
    world.log([1.5], prefix="shadow", variant="challenger")
    world.label(["shadow0"], 1.0, START + timedelta(days=1))
    made = build_training_set(spec(), world.tables, SCHEMA, tmp_path / "set")
    assert made.train().num_rows + made.holdout().num_rows == 400


def reference(path: Path, hours: Sequence[float | None]) -> Path:
    n = len(hours)
    times = [None if h is None else START + timedelta(hours=h) for h in hours]
    columns = {
        "x": [-1.0] * n,
        "n": list(range(n)),
        "kind": ["ref"] * n,
        "prediction": [0.0] * n,
        LABEL: [1.0] * n,
    }
    write_rows(pa.table(columns).append_column(EVENT_TIME, pa.array(times, UTC)), path)
    return path


def test_the_reference_is_trained_on_where_it_is_older_than_the_holdout(world: World, tmp_path: Path) -> None:
    """Undated rows count as old; dated ones only inside the window and before the first held-out row."""
    base = reference(tmp_path / "reference.parquet", [None, -48.0, -2.0, 10.0, 399.0, 5000.0])
    made = build_training_set(spec(), world.tables, SCHEMA, tmp_path / "set", base)
    from_base = made.train().filter(pa.compute.equal(made.train()["kind"], "ref"))
    assert from_base["n"].to_pylist() == [0, 2, 3]
    assert made.lineage.base_rows == 3 and made.lineage.train_rows == 323
    assert "ref" not in made.holdout()["kind"].to_pylist()


def test_the_oldest_rows_go_first_when_there_are_too_many(world: World, tmp_path: Path) -> None:
    base = reference(tmp_path / "reference.parquet", [None] * 10)
    made = build_training_set(spec(max_rows=100), world.tables, SCHEMA, tmp_path / "set", base)
    assert made.train().num_rows == 100
    assert times_of(made.train())[-1] == made.lineage.holdout_start - timedelta(hours=1)


def test_weights_are_part_of_the_set_and_come_out_the_same_again(world: World, tmp_path: Path) -> None:
    """Where a window is to be chosen first, they are for whoever fits: each window has other ones."""
    base = reference(tmp_path / "reference.parquet", [None] * 10)
    recipe = spec(
        max_rows=200,
        rows_kept="random",
        half_life=timedelta(days=7),
        class_balance="downsample",
        class_ratio=20,
    )
    made = build_training_set(recipe, world.tables, SCHEMA, tmp_path / "set", base)
    train = made.train()
    assert train.column_names[-1] == WEIGHT and train[WEIGHT].to_numpy().mean() == pytest.approx(1)
    ones, zeros = sorted(train[LABEL].value_counts().field("counts").to_pylist())
    assert zeros == 20 * ones and zeros + ones == made.lineage.train_rows < 200
    again = rebuild_training_set(
        Lineage.load(tmp_path / "set" / "lineage.json"), world.tables, SCHEMA, tmp_path / "again", base
    )
    assert again.lineage == made.lineage
    windows = {"5d": timedelta(days=5), "all": None}
    open_choice = recipe.model_copy(update={"windows": windows})
    whole = build_training_set(open_choice, world.tables, SCHEMA, tmp_path / "open", base)
    assert whole.lineage.train_rows == 200 and WEIGHT not in whole.train().column_names
    chosen = whole.lineage.model_copy(update={"chosen_window": "5d"})
    assert TrainingWindow.of_lineage(chosen).start == chosen.holdout_start - timedelta(days=5)
    assert TrainingWindow.of_lineage(whole.lineage).start == whole.lineage.start


def test_too_few_labels_name_the_model_the_numbers_and_the_remedy(world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'m' has too few labelled rows .* 96 labelled.*training_window"):
        build_training_set(
            spec(as_of=START + timedelta(days=4, hours=1)), world.tables, SCHEMA, tmp_path / "set"
        )
    assert not (tmp_path / "set").exists()


def test_a_hash_sees_values_nulls_types_and_order_but_not_chunks() -> None:
    table = pa.table({"a": [1.0, None, 3.0], "s": ["x", "", None], "b": [True, None, False]})
    same = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert content_hash(table) == content_hash(same)
    different = [
        table.take([1, 0, 2]),
        table.rename_columns(["a", "s", "c"]),
        table.set_column(0, "a", pa.array([1.0, 0.0, 3.0])),
        table.set_column(0, "a", pa.array([1, None, 3])),
        table.set_column(1, "s", pa.array(["", "x", None])),
        table.set_column(2, "b", pa.array([True, False, False])),
    ]
    assert len({content_hash(t) for t in [table, *different]}) == 7
