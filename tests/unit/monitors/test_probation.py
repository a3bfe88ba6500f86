"""Probation: what is surely worse is found, what is as good is left alone however often one looks."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.windows_of import times, two_classes

from mlflow_flywheel.monitors import probation
from mlflow_flywheel.monitors.decisions import Probation
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.probation import compare, confidence_of, judge, slower, worth_a_look
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema


def classifier(slope: float, feature: str = "x", noise: int | None = None) -> Scorer:
    """Return a logistic model of one feature; the world of these tests has the slope 2."""

    def call(frame: pd.DataFrame, params: object) -> tuple[Any, Any]:
        z = slope * frame[feature].to_numpy()
        if noise is not None:
            z = z + 0.3 * np.random.default_rng(noise).normal(size=len(z))
        one = 1 / (1 + np.exp(-z))
        return (one > 0.5).astype(float), np.column_stack([1 - one, one])

    schema = FeatureSchema([Feature(feature, "double")])
    return Scorer(ModelRef(name="m", version="1", path=""), schema, call, ("0", "1"), None, "double", None)


def answered(by: Scorer, n: int = 2000, seed: int = 0) -> pa.Table:
    """Return labelled rows of four weeks, as a version answered them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    said = by.predict(pa.table({"x": x}))
    assert said.proba is not None
    proba = np.asarray(said.proba.flatten()).reshape(n, 2)
    return pa.table(
        {
            "event_time": times(n),
            "feature.x": x,
            "label": (rng.random(n) < 1 / (1 + np.exp(-2 * x))).astype(float),
            "prediction": said.values,
            "prediction_proba": two_classes(proba[:, 1]),
        }
    )


def judged(old: Scorer | None, new: Scorer, rows: pa.Table, **more: Any) -> probation.Comparison:
    found = compare(rows, old, new, **{"known": {}, "margin": 0.02, "confidence": 0.95, **more})
    assert found is not None
    return found


def test_a_worse_version_is_found_and_said_with_its_numbers() -> None:
    new = classifier(-2.0)
    found = judged(classifier(2.0), new, answered(new))
    assert found.worse and found.paired and found.high < -found.margin < 0
    assert found.margin == pytest.approx(0.02 * np.log(2), rel=0.01)
    assert "labelled rows: +" in str(found) and f"{found.after:.4f} against {found.before:.4f}" in str(found)


def test_a_better_or_equal_version_stays_and_so_does_one_that_is_a_little_worse() -> None:
    for slope in (3.0, 2.0, 1.9):
        new = classifier(slope)
        assert not judged(classifier(2.0), new, answered(new)).worse
    new = classifier(1.2)
    assert not judged(classifier(2.0), new, answered(new), margin=0.5).worse


def test_looking_often_finds_no_harm_where_there_is_none() -> None:
    """Both versions are the truth and noise of their own; six looks at growing windows, without any tolerance."""
    fooled = 0
    for seed in range(24):
        old, new = classifier(2.0, noise=500 + seed), classifier(2.0, noise=1000 + seed)
        every = answered(new, 3000, seed)
        looks = [every.slice(0, n) for n in (200, 350, 600, 1000, 1800, 3000)]
        fooled += any(
            judged(old, new, rows, margin=0.0, confidence=confidence_of(look + 1, 0.9)).worse
            for look, rows in enumerate(looks)
        )
    assert fooled <= 0.1 * 24


def test_looks_are_worth_it_when_there_is_clearly_more_to_see() -> None:
    assert [worth_a_look(n, 200, seen) for n, seen in ((199, 0), (200, 0), (299, 200), (300, 200))] == [
        False, True, False, True,
    ]  # fmt: skip
    spent = sum((1 - confidence_of(look, 0.95)) / 2 for look in range(1, 1000))
    assert spent == pytest.approx(0.05, rel=0.01)


def test_where_the_old_version_cannot_score_the_rows_its_loss_at_the_gate_is_the_yardstick() -> None:
    new = classifier(-2.0)
    rows = answered(new)
    for old in (None, classifier(2.0, feature="y")):
        found = judged(old, new, rows, known={"log_loss": 0.4})
        assert found.worse and not found.paired and found.before == pytest.approx(0.4)
        assert compare(rows, old, new, known={}, margin=0.02, confidence=0.95) is None


def test_answers_without_probabilities_are_compared_by_the_classes_they_name() -> None:
    new = classifier(-2.0)
    rows = answered(new)
    rows = rows.set_column(
        rows.column_names.index("prediction_proba"),
        "prediction_proba",
        pa.nulls(len(rows), pa.list_(pa.float64())),
    )
    found = judged(classifier(2.0), new, rows)
    assert found.worse and found.metric == "error_rate"


def test_a_version_whose_predictions_take_much_longer_is_named_with_its_deployment() -> None:
    def rows(us: int, n: int = 300) -> pa.Table:
        return pa.table({"deployment": ["web"] * n, "execution_duration_us": pa.array([us] * n, pa.int64())})

    assert slower(rows(2000), rows(7000), 200, 3.0) == "web: 7.0 ms per prediction (median) against 2.0 ms"
    assert slower(rows(2000), rows(5000), 200, 3.0) is None
    assert slower(rows(20), rows(900), 200, 3.0) is None  # still quick
    assert slower(rows(2000), rows(7000, 100), 200, 3.0) is None  # too few to say


@pytest.mark.parametrize(
    ("day", "labelled", "seen", "compared", "follows"),
    [
        (3, 150, 0, False, "goes_on"),  # too few labels yet
        (3, 900, 0, True, "goes_on"),
        (5, 1000, 900, False, "goes_on"),  # hardly more than at the last look
        (7, 1000, 900, True, "passed"),  # the last look takes what there is
        (7, 900, 900, False, "passed"),
        (8, 150, 0, False, "goes_on"),  # late labels are waited for
        (21, 150, 0, False, "unjudged"),
    ],
)
def test_a_probation_goes_on_until_it_is_over_and_enough_was_seen(
    day: int, labelled: int, seen: int, compared: bool, follows: str
) -> None:
    began = datetime(2024, 5, 1, tzinfo=timezone.utc)
    looks: list[Probation] = []

    def look(at: Probation) -> None:
        looks.append(at)

    known = Probation(promotion=9, looks=1 if seen else 0, rows=seen)
    now = began + timedelta(days=day)
    found = judge(PolicySpec(), "2", began, now, labelled, known, look)
    assert found.kind == follows
    assert looks == ([Probation(promotion=9, looks=known.looks + 1, rows=labelled)] if compared else [])
    assert found.state == (looks[0] if looks else known)


def test_what_proves_worse_ends_a_probation_at_once() -> None:
    new = classifier(-2.0)
    began = datetime(2024, 5, 1, tzinfo=timezone.utc)
    worse = judged(classifier(2.0), new, answered(new))
    found = judge(PolicySpec(), "2", began, began, 2000, Probation(promotion=9), lambda look: worse)
    assert found.kind == "worse" and "surely worse" in found.reason
    assert found.evidence is not None and found.evidence["comparison"]["worse"]
