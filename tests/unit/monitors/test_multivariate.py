import numpy as np
import pyarrow as pa
import pytest
from support.windows_of import WINDOW, reference_of, window_of

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.multivariate import MultivariateSpec, multivariate
from mlflow_flywheel.monitors.policy import PolicySpec


def features(seed, n=1000, correlation=0.0, shift=0.0, columns=8):
    rng = np.random.default_rng(seed)
    found = {f"x{i}": rng.normal(size=n) for i in range(columns)}
    found["x1"] = correlation * found["x0"] + np.sqrt(1 - correlation**2) * found["x1"]
    found["c"] = pa.array(np.where(found["x2"] + rng.normal(size=n) > 0.5, "often", "rare"))
    found["x3"] = np.exp(found["x3"] + shift)
    return found


def told(new, old):
    return multivariate(window_of(new), reference_of(old), WINDOW)


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.7), (0.8, 0.0), (0.95, 0.6)])
def test_a_changed_correlation_that_no_column_shows_is_found(before, now):
    old, new = features(1, 2000, before), features(2, correlation=now)
    assert drift(window_of(new), reference_of(old), WINDOW).status == "ok"
    verdict = told(new, old)
    assert verdict.status in ("warn", "alarm") and verdict.metrics["p_value"] < 1e-4
    first = verdict.evidence[0]
    assert {first["first"], first["second"]} == {"x0", "x1"}
    assert first["correlation_reference"] == pytest.approx(before, abs=0.1)
    assert "x0 with x1" in verdict.summary


def test_a_category_that_goes_with_another_column_is_found():
    old, new = features(1, 3000), features(2, 3000)
    new["c"] = pa.array(np.random.default_rng(0).permutation(new["c"].to_numpy(zero_copy_only=False)))
    verdict = told(new, old)
    assert verdict.metrics["detected"] == 1 and {"c", "x2"} == set(list(verdict.evidence[0].values())[:2])


def test_a_change_of_single_columns_is_left_to_drift():
    old, new = features(1, 2000), features(2, shift=2.0)
    new["c"] = pa.array(["often"] * 900 + ["rare"] * 100)
    new |= {f"x{i}": new[f"x{i}"] * 5 + 3 for i in (4, 5)}
    assert drift(window_of(new), reference_of(old), WINDOW).status == "alarm"
    assert told(new, old).status == "ok"


def test_calm_windows_are_calm():
    found = [told(features(seed, 300), features(1000 + seed, 600)) for seed in range(60)]
    assert (
        sum(v.metrics["detected"] for v in found) <= 7
    )  # 3 are expected; more than 7 have a probability of 1%
    assert not any(v.status == "alarm" for v in found)


def test_what_cannot_be_looked_at_is_left_out():
    old, new = features(1), features(2)
    old |= {
        "id": pa.array(["same"] * 1000),
        "when": pa.array(np.arange(1000), pa.timestamp("us")),
        "gone": old["x0"],
    }
    new |= {"id": new["x0"], "when": old["when"], "x4": pa.array(["oops"] * 1000)}
    new["x5"] = np.where(np.arange(1000) % 2, np.nan, new["x5"])
    verdict = told(new, old)
    assert verdict.metrics["columns"] == 7 and verdict.status == "ok"
    alone = {"x0": old["x0"]}
    assert told(alone, alone).status == "unknown" and "fewer than two" in told(alone, alone).summary


def test_thresholds_come_from_the_policy():
    spec = MultivariateSpec.of(PolicySpec.parse({"min_rows": 50, "confidence": 0.99}))
    assert (spec.min_rows, spec.alpha) == (50, 0.01)
