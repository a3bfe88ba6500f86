"""The gate: what helps is promoted, what harms or merely might be luck is not."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlflow_flywheel.pipelines import gate
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.gate import Scores, auc, compare, decide, score, time_blocks
from mlflow_flywheel.pipelines.gate_checks import GateChecks
from mlflow_flywheel.pipelines.model import Predictions, Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.training_files import EVENT_TIME, LABEL

START = datetime(2024, 3, 1, tzinfo=timezone.utc)


def classifier(slope: float, *, with_proba: bool = True, feature: str = "x") -> Scorer:
    """Return a logistic model of one feature; the world of these tests has the slope 2."""

    def call(frame: pd.DataFrame, params: object) -> tuple[Any, Any]:
        one = 1 / (1 + np.exp(-slope * frame[feature].to_numpy()))
        return (one > 0.5).astype(float), np.column_stack([1 - one, one]) if with_proba else None

    schema = FeatureSchema([Feature(feature, "double")])
    ref = ModelRef(name="m", version="1", path="")
    return Scorer(ref, schema, call, ("0", "1") if with_proba else None, None, "double", None)


def regressor(error: float) -> Scorer:
    def call(frame: pd.DataFrame, params: object) -> tuple[Any, Any]:
        return frame["x"].to_numpy() + error, None

    ref = ModelRef(name="m", version="1", path="")
    return Scorer(ref, FeatureSchema([Feature("x", "double")]), call, None, None, "double", None)


def holdout(days: int = 20, per_day: int = 200, seed: int = 0, label: str = "class") -> pa.Table:
    rng = np.random.default_rng(seed)
    n = days * per_day
    x = rng.normal(size=n)
    happened = (rng.random(n) < 1 / (1 + np.exp(-2 * x))).astype(float)
    times = [START + timedelta(days=i // per_day, seconds=i % per_day) for i in range(n)]
    labels = happened if label == "class" else x
    columns = {"other": np.arange(n), "x": x, LABEL: labels}
    return pa.table(columns).append_column(EVENT_TIME, pa.array(times, pa.timestamp("us", tz="UTC")))


def test_a_better_model_is_promoted_and_the_reason_has_the_numbers() -> None:
    result = compare(classifier(-0.5), classifier(2.0), holdout(), "classifier")
    assert result.promote
    assert 0 < result.low < result.difference < result.high
    assert result.metric == "log_loss" and result.blocks == 20 and result.rows == 4000
    assert result.challenger["auc"] > 0.8 and result.champion["auc"] < 0.5
    assert result.difference == pytest.approx(result.champion["log_loss"] - result.challenger["log_loss"])
    assert (
        "log loss 0" in result.reason
        and f"{result.low:+.4f}" in result.reason
        and "20 blocks" in result.reason
    )


def test_a_harmful_model_is_refused() -> None:
    result = compare(classifier(2.0), classifier(0.2), holdout(), "classifier")
    assert not result.promote and result.high < 0
    assert "worse" in result.reason


def test_the_same_model_is_never_promoted() -> None:
    result = compare(classifier(1.0), classifier(1.0), holdout(), "classifier")
    assert not result.promote and result.difference == 0.0


def test_equally_good_models_are_not_promoted_in_more_than_95_percent_of_seeds() -> None:
    """Differences have no mean but a common part per day, which single-row bootstraps take for evidence."""
    seeds, per_day = 400, 50
    promoted, fooled = 0, 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        blocks = np.repeat(np.arange(14), per_day)
        gains = rng.normal(size=14)[blocks] * 0.1 + rng.normal(size=len(blocks)) * 0.2
        before, after = Scores("log_loss", gains, {}), Scores("log_loss", np.zeros_like(gains), {})
        promoted += decide(before, after, blocks, seed=seed, n_bootstrap=500).promote
        if seed < 60:
            fooled += decide(before, after, np.arange(len(blocks)), seed=seed, n_bootstrap=200).promote
    assert promoted <= 0.05 * seeds
    assert fooled > 0.1 * 60  # the test can tell: rows as blocks would not pass it


def test_a_gain_below_the_margin_is_not_worth_a_rollout() -> None:
    rows = holdout()
    gain = compare(classifier(1.0), classifier(2.0), rows, "classifier").difference
    assert compare(classifier(1.0), classifier(2.0), rows, "classifier", margin=gain * 0.9).promote
    refused = compare(classifier(1.0), classifier(2.0), rows, "classifier", margin=gain * 1.1)
    assert not refused.promote and "margin" in refused.reason


def test_too_few_blocks_exclude_nothing() -> None:
    rows = holdout(days=1, per_day=3)
    result = compare(classifier(-2.0), classifier(2.0), rows, "classifier")
    assert not result.promote and "too few" in result.reason


def test_regressors_are_compared_by_absolute_error() -> None:
    result = compare(regressor(3.0), regressor(0.5), holdout(label="number"), "regressor")
    assert result.promote and result.metric == "mae"
    assert result.champion["mae"] == pytest.approx(3.0) and result.challenger["bias"] == pytest.approx(0.5)


def test_models_without_probabilities_are_compared_by_the_classes_they_name() -> None:
    rows = holdout()
    result = compare(classifier(-1.0, with_proba=False), classifier(2.0), rows, "classifier")
    assert result.promote and result.metric == "error_rate"
    assert result.challenger["accuracy"] > 0.7


def test_a_challenger_that_needs_an_unknown_feature_is_refused_with_its_words() -> None:
    result = compare(classifier(1.0), classifier(2.0, feature="y"), holdout(), "classifier")
    assert not result.promote and "'y'" in result.reason
    assert result.to_dict()["difference"] is None


def test_the_champion_must_be_able_to_score() -> None:
    with pytest.raises(BadInput, match="'y'"):
        compare(classifier(1.0, feature="y"), classifier(2.0), holdout(), "classifier")


def test_scores_match_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 500)
    one = np.round(rng.random(500), 2).clip(0.01, 0.99)  # rounded: ties
    proba = pa.array(np.column_stack([1 - one, one]).tolist(), pa.list_(pa.float64()))
    found = score(
        Predictions(pa.array((one > 0.5) * 1.0), proba, []), ("0", "1"), pa.array(truth * 1.0), "classifier"
    )
    assert found.metrics["log_loss"] == pytest.approx(log_loss(truth, one))
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(truth, one))
    assert found.metrics["brier"] == pytest.approx(brier_score_loss(truth, one))


def test_multiclass_labels_are_found_by_name_and_an_unknown_one_costs_the_floor() -> None:
    proba = pa.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], pa.list_(pa.float64()))
    said = Predictions(pa.array(["high", "low", "mid"]), proba, [])
    found = score(said, ("high", "low", "mid"), pa.array(["high", "mid", "never seen"]), "classifier")
    assert found.losses.tolist() == pytest.approx(
        [-math.log(0.7), -math.log(0.1), -math.log(gate.PROBABILITY_FLOOR)]
    )


@pytest.mark.parametrize("labels", [pa.array([True, False]), pa.array([1, 0]), pa.array(["true", "False"])])
@pytest.mark.parametrize("classes", [("0", "1"), ("False", "True"), ("0.0", "1.0")])
def test_one_class_has_many_spellings(labels: pa.Array, classes: tuple[str, str]) -> None:
    assert gate.class_codes(labels, classes).tolist() == [1, 0]


def test_one_class_only_has_no_auc() -> None:
    assert math.isnan(auc(np.array([True, True]), np.array([0.1, 0.2])))


def test_blocks_are_days_or_equal_spans_of_a_short_holdout() -> None:
    days = holdout(days=12, per_day=3)
    assert time_blocks(days[EVENT_TIME]).tolist() == [i // 3 for i in range(36)]
    short = holdout(days=2, per_day=50)
    blocks = time_blocks(short[EVENT_TIME])
    assert np.bincount(blocks).tolist() == [10] * 10
    assert (np.diff(blocks) >= 0).all()


def with_origin(rows: pa.Table) -> pa.Table:
    """Let a third of the rows be from JFK."""
    return rows.append_column("origin", pa.array(["JFK" if i % 3 == 0 else "EWR" for i in range(len(rows))]))


def by_origin(jfk: float, ewr: float) -> Scorer:
    """Return a classifier with a slope of its own per origin."""

    def call(frame: pd.DataFrame, params: object) -> tuple[Any, Any]:
        slope = np.where(frame["origin"] == "JFK", jfk, ewr)
        one = 1 / (1 + np.exp(-slope * frame["x"].to_numpy()))
        return (one > 0.5).astype(float), np.column_stack([1 - one, one])

    schema = FeatureSchema([Feature("x", "double"), Feature("origin", "string")])
    return Scorer(ModelRef(name="m", version="1", path=""), schema, call, ("0", "1"), None, "double", None)


def test_a_challenger_that_gains_but_not_in_every_slice_is_refused_with_the_slices_numbers() -> None:
    rows = with_origin(holdout())
    worse_there = (by_origin(1.5, 0.1), by_origin(0.5, 2.0))
    assert compare(*worse_there, rows, "classifier").promote
    result = compare(*worse_there, rows, "classifier", checks=GateChecks(slices=("origin", "x")))
    assert not result.promote
    assert result.reason.startswith("refused: origin=JFK gets worse: gain -0.")
    assert "the score alone passed: the interval excludes harm" in result.reason
    slices = {one.slice: one for one in result.slices}
    assert slices["origin=JFK"].worse and not slices["origin=EWR"].worse
    assert slices["origin=EWR"].difference > 0 and len(slices) == 6  # x at its quartiles
    assert json.loads(json.dumps(result.to_dict()))["slices"][0]["rows"] == max(o.rows for o in result.slices)
    better = compare(
        by_origin(0.1, 0.1), by_origin(2.0, 2.0), rows, "classifier", checks=GateChecks(("origin",))
    )
    assert better.promote and len(better.slices) == 2
    with pytest.raises(BadInput, match=r"gate_slices names 'orgin', .*did you mean 'origin'"):
        compare(*worse_there, rows, "classifier", checks=GateChecks(slices=("orgin",)))


def test_each_attempt_on_the_same_evidence_must_be_surer_so_that_none_passes_by_luck() -> None:
    chances = [(1 - GateChecks(attempt=k).confidence(0.95)) / 2 for k in range(1, 20)]
    assert chances[0] == pytest.approx(0.025) and sum(chances) < 0.05
    rows = holdout()
    first = compare(classifier(1.4), classifier(2.0), rows, "classifier")
    third = compare(classifier(1.4), classifier(2.0), rows, "classifier", checks=GateChecks(attempt=3))
    assert third.low < first.low and third.high > first.high
    assert third.confidence == pytest.approx(0.9875) and "98.75% interval" in third.reason
    assert "attempt 3 on this evidence" in third.reason and "attempt" not in first.reason


def test_a_challenger_that_is_much_slower_or_larger_is_refused(tmp_path: Path) -> None:
    def slow() -> Scorer:
        quick = classifier(2.0)

        def call(frame: pd.DataFrame, params: object) -> tuple[Any, Any]:
            for _ in range(40):
                said = quick._call(frame, params)
            return said

        return Scorer(quick.ref, quick.schema, call, ("0", "1"), None, "double", None)

    result = compare(
        classifier(-1.0), slow(), holdout(), "classifier", checks=GateChecks(max_latency_ratio=4)
    )
    assert not result.promote and "times as long, more than 4" in result.reason
    assert result.latency_ratio is not None and result.latency_ratio > 4

    scorers = []
    for name, size, slope in (("small", 100, -1.0), ("large", 1000, 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(bytes(size))
        made = classifier(slope)
        made.ref = made.ref.model_copy(update={"path": str(tmp_path / name)})
        scorers.append(made)
    result = compare(*scorers, holdout(), "classifier", checks=GateChecks(max_size_ratio=2))
    assert not result.promote and "it is 10.0 times as large, more than 2" in result.reason
    assert compare(*scorers, holdout(), "classifier", checks=GateChecks(max_size_ratio=20)).promote
