"""Probation: what is surely worse is found, what is as good is left alone however often one looks."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.versions import answered, classifier

from mlflow_flywheel.monitors import probation
from mlflow_flywheel.monitors.decisions import Probation
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.probation import compare, confidence_of, judge, slower, worth_a_look
from mlflow_flywheel.monitors.probation_estimate import compare_estimates
from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.training_files import EVENT_TIME


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


@pytest.mark.parametrize(("slope", "worse"), [(-2.0, True), (8.0, True), (2.0, False), (1.9, False)])
def test_before_labels_come_what_both_versions_probably_lose_is_compared(slope: float, worse: bool) -> None:
    """The new version's reference teaches about both; the rows that it answered since have no labels."""
    old, new = classifier(2.0), classifier(slope)
    rows = (
        answered(new, 2000, seed=3)
        .drop_columns(["label"])
        .append_column("label", pa.nulls(2000, pa.float64()))
    )
    found = compare_estimates(rows, old, new, reference(new), margin=0.02, confidence=0.95)
    assert found is not None and found.worse is worse, found
    assert (
        found.metric == "log_loss" and found.rows == 2000 and found.margin == pytest.approx(0.0139, abs=1e-3)
    )
    assert "rows whose labels are not there yet" in str(found) and found.to_dict()["low"] == found.low


def test_estimates_find_no_harm_where_there_is_none_and_say_nothing_without_a_reference() -> None:
    fooled = 0
    for seed in range(12):
        old, new = classifier(2.0, noise=500 + seed), classifier(2.0, noise=1000 + seed)
        found = compare_estimates(
            answered(new, 800, seed), old, new, reference(new), margin=0.0, confidence=0.9
        )
        assert found is not None
        fooled += found.worse
    assert fooled <= 2
    rows = answered(new)
    assert compare_estimates(rows, old, new, None, margin=0.02, confidence=0.95) is None
    other = classifier(2.0, feature="y")
    assert compare_estimates(rows, other, new, reference(new), margin=0.02, confidence=0.95) is None


def reference(version: Scorer) -> Reference:
    rows = answered(version, 1000, seed=99)
    names = {"feature.x": "x", "event_time": EVENT_TIME}
    return Reference(rows.rename_columns([names.get(name, name) for name in rows.column_names]))


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
