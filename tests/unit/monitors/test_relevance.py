"""Relevance: batch answers are asked again, of the version in force and of newer features."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.looks import logged, look_of, scorer_of
from support.windows_of import WINDOW, probabilities, reference_of

from mlflow_flywheel.monitors.look import Deployed, Look
from mlflow_flywheel.monitors.relevance import RelevanceMonitor
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import Window

N = 400
NIGHT = Window(WINDOW.end - timedelta(hours=30), WINDOW.end - timedelta(hours=10))
LATER = Window(WINDOW.end - timedelta(hours=9), WINDOW.end)
X = np.random.default_rng(0).normal(size=N)
BATCH = {"deployment": "night", "mode": "batch", "model_version": "0"}
IDS = pa.array([f"customer {i}" for i in range(N)])


def positive(frame: pd.DataFrame, more: float = 0.0) -> Any:
    score = 1 / (1 + np.exp(-(frame["x"].to_numpy() + more)))
    return (score > 0.5) * 1.0, np.column_stack([1 - score, score])


def answered(answer: Callable[[pd.DataFrame], Any], x: Any = X) -> dict[str, Any]:
    said = answer(pd.DataFrame({"x": x}))
    if not isinstance(said, tuple):
        return {"prediction": said}
    return {"prediction": said[0], "prediction_proba": probabilities(said[1])}


def looked(
    night: dict[str, Any], now: Callable[[pd.DataFrame], Any], *others: pa.Table, **policy: Any
) -> Look:
    """Return a look at a night's answers, whose version is not in force any more, while `now` answers."""
    scorer = scorer_of(now, "x")
    rows = logged({"x": X}, NIGHT, client_request_id=IDS, **BATCH, **night)
    own = logged({"x": X}, LATER, prediction=X)
    reference = reference_of({"x": X}, prediction=night["prediction"])
    deployments = [Deployed("web", "web"), Deployed("night", "batch")]
    return look_of(
        own, reference, others=[rows, *others], deployments=deployments, load=lambda: scorer, **policy
    )


def judged(*arguments: Any, **policy: Any) -> Verdict | None:
    return RelevanceMonitor().look(looked(*arguments, **policy))


def test_answers_that_the_version_in_force_repeats_are_relevant() -> None:
    verdict = judged(answered(positive), positive)
    assert verdict is not None and verdict.status == "ok"
    assert (verdict.metrics["compared"], verdict.metrics["changed_share"]) == (N, 0)
    assert verdict.summary.startswith(
        "0.0% of 400 batch answers up to 2013-02-28 13:57 would be different now"
    )


@pytest.mark.parametrize("moved", ["class", "probability"])
def test_a_version_that_says_otherwise_makes_them_stale(moved: str) -> None:
    def now(frame: pd.DataFrame) -> Any:
        if moved == "class":
            return positive(frame, more=1.0)
        said, proba = positive(frame)
        return said, np.clip(proba + np.array([-0.2, 0.2]), 0, 1)

    verdict = judged(answered(positive), now)
    assert verdict is not None and verdict.status == "alarm", verdict
    assert verdict.metrics["changed_share"] == verdict.metrics["changed_by_version"] > 0.3
    relaxed = judged(answered(positive), now, answer_tolerance="0.5", stale_share="0.9")
    assert relaxed is not None and relaxed.status == "ok"


def test_numbers_differ_by_deviations_of_the_reference() -> None:
    def price(more: float) -> Callable[[pd.DataFrame], Any]:
        return lambda frame: 1000 * frame["x"] + more

    night = answered(price(0))
    steady, moved = (judged(night, price(more)) for more in (50, 150))
    assert steady is not None and (steady.status, steady.metrics["changed_share"]) == ("ok", 0)
    assert moved is not None and (moved.status, moved.metrics["changed_share"]) == ("alarm", 1)


def test_newer_features_of_the_same_entity_count_in_whatever_mode_they_came() -> None:
    """Half of the customers were seen again, twice: the last time counts, a time before the batch run does not."""
    half = N // 2
    again = {"client_request_id": IDS[:half], "deployment": "web", "mode": "web", "model_version": "0"}
    turned = logged({"x": -X[:half]}, LATER, **again, **answered(positive, -X[:half]))
    as_before = logged({"x": X[:half]}, Window(LATER.start, LATER.start + timedelta(hours=1)), **again)
    early = logged({"x": -X}, Window(WINDOW.start, NIGHT.start), client_request_id=IDS)
    look = looked(answered(positive), positive, as_before, turned, early)
    verdict = RelevanceMonitor().look(look)
    assert verdict is not None and verdict.status == "alarm"
    assert RelevanceMonitor().look(look.of("night")) == verdict
    assert verdict.metrics["renewed_share"] == 0.5 and verdict.metrics["changed_by_version"] == 0
    assert verdict.metrics["changed_by_features"] > 0.9
    assert verdict.metrics["changed_share"] == verdict.metrics["changed_by_features"] / 2
    assert verdict.evidence[0]["with_newer_features"] == half
    assert "of the 200 that have them" in verdict.summary


def test_without_batch_deployments_no_row_is_read_and_no_model_loaded() -> None:
    look = look_of(logged({"x": X}), deployments=[Deployed("web", "web")])

    def unread(*_: Any, **__: Any) -> pa.Table:
        raise AssertionError("nothing is to be read")

    object.__setattr__(look, "read", unread)
    assert RelevanceMonitor().look(look) is None


def test_answers_that_cannot_be_asked_again_are_no_verdict() -> None:
    scorer = scorer_of(positive, "x", "y")
    rows = logged({"x": X}, NIGHT, **BATCH, **answered(positive))
    look = look_of(rows, deployments=[Deployed("night", "batch")], load=lambda: scorer)
    verdict = RelevanceMonitor().look(look)
    assert verdict is not None and verdict.status == "unknown"
    assert "feature 'y' was not logged by deployment 'night'" in verdict.summary
