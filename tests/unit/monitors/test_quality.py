"""Quality: each rule hears what it is for, keeps quiet otherwise, and is no second drift."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.looks import logged, look_of
from support.windows_of import probabilities, reference_of

from mlflow_flywheel.monitors.quality import QualityMonitor
from mlflow_flywheel.monitors.verdicts import Verdict

N = 1000


def features(seed: int, n: int = N) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=n),
        "c": pa.array(rng.choice(["a", "b", "cc"], n)),
        "gap": np.where(rng.random(n) < 0.3, np.nan, 1.0),
    }


def judged(known: dict[str, Any] | None = None, own: dict[str, Any] | None = None, **changed: Any) -> Verdict:
    old, new = features(0) | (known or {}), features(1) | changed
    return QualityMonitor().look(look_of(logged(new, **(own or {})), reference_of(old)))


def some(broken: Any, share: float = 0.1) -> Any:
    """Return normal numbers, of which this share is broken."""
    values = np.random.default_rng(2).normal(size=N)
    values[: int(N * share)] = broken
    return values


WORDS = pa.array(np.random.default_rng(3).choice(["a", "b", "zz"], N))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": some(np.nan)}, "x: 10.0% missing"),
        ({"x": some(-np.inf)}, "x: 10.0% infinite"),
        ({"x": some(-999.0)}, "x: 10.0% far out of range (-999 to "),
        ({"x": np.full(N, 0.5)}, "x: 100.0% standing still (always 0.5)"),
        ({"x": pa.array(["?"] * N)}, "x: 100.0% unreadable (type changed: string where numbers were)"),
        ({"c": WORDS}, "% in unknown categories (1 of them)"),
        ({"gap": np.full(N, 1.0) * np.nan}, "gap: 100.0% missing"),
        ({"own": {"prediction": some(np.nan)}}, "prediction: 10.0% without an answer"),
        ({"own": {"prediction": some(np.inf)}}, "prediction: 10.0% infinite"),
        (
            {"own": {"prediction_proba": probabilities(np.column_stack([some(2.0), some(0.5)]))}},
            "outside of 0 to 1",
        ),
        ({"own": {"status_code": pa.array([200, 503] * (N // 2), pa.int32())}}, "status_code: 50.0% 400 or above"),
    ],
)  # fmt: skip
def test_broken_values_are_an_alarm_that_names_them(changed: dict[str, Any], says: str) -> None:
    verdict = judged(**changed)
    assert verdict.status == "alarm" and says in verdict.summary
    assert verdict.evidence[0]["status"] == "alarm" and verdict.metrics["broken_share"] >= 0.1


def test_few_broken_values_are_a_warning_and_one_is_nothing() -> None:
    assert judged(x=some(-999.0, 0.03)).status == "warn"
    assert judged(x=some(-999.0, 0.001)).status == "ok"


def test_what_drift_is_for_is_no_broken_value() -> None:
    """A shift within what the reference has seen, other shares of the same categories, a share missing as always."""
    rng = np.random.default_rng(4)
    moved = judged(
        x=rng.normal(1.5, 0.5, N), c=pa.array(rng.choice(["a", "b", "cc"], N, p=[0.9, 0.05, 0.05]))
    )
    assert (moved.status, moved.summary) == ("ok", "no broken values")
    assert {row["column"] for row in moved.evidence} == {"gap"}, "it is missing as often as ever"


def test_names_are_no_categories_and_rare_categories_are_expected() -> None:
    names = {"c": pa.array([f"customer {i}" for i in range(N)])}
    assert judged(known=names, c=pa.array([f"someone {i}" for i in range(N)])).status == "ok"
    rng = np.random.default_rng(5)
    old, new = (pa.array((rng.zipf(1.5, N) % 5000).astype(str)) for _ in range(2))
    assert judged(known={"c": old}, c=new).status == "ok"


def test_without_a_reference_only_what_is_never_right_is_broken() -> None:
    look = QualityMonitor().look
    calm = look(look_of(logged(features(1) | {"x": some(-999.0)})))
    assert calm.status == "ok" and "without a reference" in calm.summary
    assert look(look_of(logged(features(1) | {"x": some(np.inf)}))).status == "alarm"


def test_nothing_is_broken_where_nothing_changed() -> None:
    """Forty windows of few and many rows, also with heavy tails, are all quiet."""
    rng = np.random.default_rng(6)
    for n in (200, 2000) * 20:
        old, new = (
            {"x": rng.standard_t(3, n), "y": rng.exponential(size=n), **features(0, n)} for _ in range(2)
        )
        old["gap"], new["gap"] = (np.where(rng.random(n) < 0.3, np.nan, 1.0) for _ in range(2))
        verdict = QualityMonitor().look(look_of(logged(new), reference_of(old)))
        assert verdict.status == "ok", verdict.summary
