import numpy as np
import pyarrow as pa
import pytest
from support.windows_of import WINDOW, reference_of, times, two_classes, window_of

from mlflow_flywheel.monitors.column_drift import Change
from mlflow_flywheel.monitors.drift import DriftSpec, drift
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.statistics import Comparison


def make(rng, n, shift=0.0, columns=10, categories=10):
    """Return features, half of them numbers and half categories (one with 100 of them); the first third may shift."""
    moved = max(1, columns // 3) if shift else 0
    features = {}
    for i in range(columns):
        if i % 2 == 0:
            features[f"x{i}"] = rng.normal(shift if i < moved else 0.0, 1.0, n)
        else:
            k = 100 if i == 1 else categories
            weights = np.ones(k)
            if i < moved:
                weights[: k // 2] += 2 * shift
            features[f"c{i}"] = rng.choice([f"v{j}" for j in range(k)], n, p=weights / weights.sum())
    return features


def both(rng, n_reference, n_window, shift=0.0, **how):
    reference = reference_of(make(rng, n_reference, **how), prediction=np.zeros(n_reference))
    return window_of(make(rng, n_window, shift, **how), prediction=np.zeros(n_window)), reference


@pytest.mark.parametrize(("n_reference", "n_window"), [(500, 500), (5000, 200), (500, 5000), (5000, 5000)])
def test_without_drift_false_alarms_stay_below_the_nominal_rate(n_reference, n_window):
    rng = np.random.default_rng(n_reference + n_window)
    runs = 100
    verdicts = [drift(*both(rng, n_reference, n_window), WINDOW) for _ in range(runs)]
    flagged = sum(v.status != "ok" for v in verdicts)
    assert sum(v.status == "alarm" for v in verdicts) == 0
    # 5% nominal; 12 of 100 has a probability below 1% at that rate.
    assert flagged < 12


def test_p_values_themselves_are_calibrated_not_only_hidden_by_the_effect_size():
    rng, runs = np.random.default_rng(3), 200
    found = [drift(*both(rng, 500, 500), WINDOW, DriftSpec(effect=0.0)) for _ in range(runs)]
    flagged = sum(
        any(row["p_adjusted"] is not None and row["p_adjusted"] <= 0.05 for row in v.evidence) for v in found
    )
    assert 0.005 * runs <= flagged <= 0.095 * runs


@pytest.mark.parametrize(("shift", "n", "least"), [(0.25, 2000, 0.9), (0.5, 500, 0.9), (1.0, 200, 0.95)])
def test_shifted_columns_are_found_and_only_they(shift, n, least):
    rng, hits, false, runs = np.random.default_rng(11), 0, 0, 30
    for _ in range(runs):
        verdict = drift(*both(rng, 5000, n, shift), WINDOW)
        drifted = {row["column"] for row in verdict.evidence if row["drifted"]}
        hits += len(drifted & {"x0", "x2"})
        false += len(drifted - {"x0", "c1", "x2"})
    assert hits >= least * 2 * runs
    assert false <= 0.05 * 7 * runs


def test_a_tiny_shift_of_many_rows_is_significant_but_not_relevant():
    rng = np.random.default_rng(5)
    reference = reference_of({"x": rng.normal(0, 1, 100_000)})
    verdict = drift(window_of({"x": rng.normal(0.05, 1, 100_000)}), reference, WINDOW)
    (row,) = verdict.evidence
    assert row["p_adjusted"] < 1e-6 and not row["drifted"] and verdict.status == "ok"


def test_a_change_that_may_be_as_large_as_matters_counts_until_rows_say_surely_not():
    found = [
        Change(Comparison("ks", 0.0, 0.08, "wasserstein/sigma", error), values_p=0.0)
        for error in (0.02, 0.002)
    ]
    assert [change.relevant(DriftSpec()) for change in found] == [True, False]
    assert all(change.detected(DriftSpec()) for change in found)


def test_the_share_of_drifted_features_makes_the_alarm():
    rng = np.random.default_rng(1)
    old = {f"x{i}": rng.normal(0, 1, 1000) for i in range(10)}
    for moved, status in ((0, "ok"), (2, "warn"), (3, "alarm")):
        new = {f"x{i}": rng.normal(1.0 if i < moved else 0.0, 1, 1000) for i in range(10)}
        verdict = drift(window_of(new), reference_of(old), WINDOW)
        assert verdict.status == status
        assert verdict.metrics["share"] == moved / 10 and verdict.metrics["drifted_columns"] == moved
        assert f"{moved} of 10 features drifted" in verdict.summary


def test_predictions_that_moved_far_alarm_without_any_drifted_feature():
    rng = np.random.default_rng(2)
    x, old, near, far = rng.random((4, 2000))
    reference = reference_of({"x": x}, prediction=(old > 0.5) * 1.0, prediction_proba=two_classes(old))
    for scores, status in ((near, "ok"), (near * 0.9 + 0.07, "warn"), (far * 0.5, "alarm")):
        verdict = drift(
            window_of({"x": x}, prediction=(scores > 0.5) * 1.0, prediction_proba=two_classes(scores)),
            reference,
            WINDOW,
        )
        assert verdict.status == status, verdict
        assert "prediction score" in {row["column"] for row in verdict.evidence}


def test_predicted_classes_are_compared_when_there_is_no_score():
    rng = np.random.default_rng(2)
    x = rng.random(1000)
    reference = reference_of({"x": x}, prediction=rng.choice(["a", "b", "c"], 1000))
    same = drift(window_of({"x": x}, prediction=rng.choice(["a", "b", "c"], 1000)), reference, WINDOW)
    one = drift(window_of({"x": x}, prediction=np.full(1000, "a")), reference, WINDOW)
    assert (same.status, one.status) == ("ok", "alarm")


N = 1000
GEN = np.random.default_rng(0)
NUMBERS = GEN.normal(0, 1, N)
WORDS = GEN.choice(["a", "b", "c"], N)
LETTERS = pa.array(WORDS)
DEGENERATE = {
    "same": (NUMBERS, NUMBERS[::-1].copy(), False, ""),
    "all missing now": (NUMBERS, pa.array([None] * N, pa.float64()), True, "no values in the window"),
    "all NaN now": (NUMBERS, np.full(N, np.nan), True, "no values in the window"),
    "null type now": (NUMBERS, pa.nulls(N), True, "no values in the window"),
    "all missing in both": (
        pa.nulls(N, pa.float64()),
        np.full(N, np.nan),
        False,
        "no values in the reference",
    ),
    "all missing before": (pa.nulls(N, pa.float64()), NUMBERS, True, "no values in the reference"),
    "constant in both": (np.ones(N), np.ones(N), False, ""),
    "constant now": (NUMBERS, np.zeros(N), True, ""),
    "another constant": (np.ones(N), np.full(N, 2.0), True, "new: 2 (100.0%"),
    "constant no more": (np.ones(N), NUMBERS, True, ""),
    "infinite": (NUMBERS, np.where(np.arange(N) < 300, np.inf, NUMBERS), True, "infinite values"),
    "more missing": (NUMBERS, np.where(np.arange(N) < 200, np.nan, NUMBERS), True, ""),
    "one missing": (NUMBERS, np.where(np.arange(N) < 1, np.nan, NUMBERS), False, ""),
    "fewer missing": (np.where(np.arange(N) < 500, np.nan, NUMBERS), NUMBERS, True, ""),
    "huge numbers": (NUMBERS, NUMBERS * 1e300, True, ""),
    "numbers as text": (
        NUMBERS,
        pa.array([f"{v:.6f}" for v in NUMBERS]),
        False,
        "logged as string, was double",
    ),
    "words for numbers": (NUMBERS, LETTERS, True, "type changed: string where numbers were"),
    "integers widened": (np.arange(N), np.arange(N) * 1.0, False, ""),
    "flag flipped": (np.arange(N) % 2 * 1.0, np.arange(N) % 10 // 9 * 1.0, True, ""),
    "booleans": (np.arange(N) % 2 == 0, np.arange(N) % 2 == 1, False, ""),
    "a new category": (WORDS, np.where(np.arange(N) < 300, "new one", WORDS), True, "new: new one (30.0%"),
    "a vanished category": (WORDS, np.where(WORDS == "c", "a", WORDS), True, "vanished: c"),
    "every value its own": (
        [f"id{i}" for i in range(N)],
        [f"no{i}" for i in range(N)],
        False,
        "new: 1,000 rare",
    ),
    "numbers for words": (WORDS, NUMBERS, True, "logged as double, was string"),
    "dictionary": (LETTERS.dictionary_encode(), LETTERS, False, ""),
    "missing words": (LETTERS, pa.nulls(N, pa.string()), True, "no values in the window"),
    "moments": (
        pa.array(np.arange(N), pa.timestamp("us")),
        pa.array(np.arange(N) + 10**9, pa.timestamp("us")),
        False,
        "by nature",
    ),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_columns_are_contained(case):
    old, new, drifted, note = DEGENERATE[case]
    healthy = {"healthy": np.random.default_rng(4).normal(0, 1, N)}
    verdict = drift(window_of({"odd": new, **healthy}), reference_of({"odd": old, **healthy}), WINDOW)
    rows = {row["column"]: row for row in verdict.evidence}
    assert rows["odd"]["drifted"] is drifted, rows["odd"]
    assert note in rows["odd"]["note"]
    assert not rows["healthy"]["drifted"]
    assert verdict.status in ("ok", "alarm") and verdict.status == ("alarm" if drifted else "ok")


def test_a_missing_column_has_drifted_and_an_added_one_is_told():
    verdict = drift(
        window_of({"x": NUMBERS, "z": NUMBERS}), reference_of({"x": NUMBERS, "y": NUMBERS}), WINDOW
    )
    rows = {row["column"]: row for row in verdict.evidence}
    assert rows["y"]["drifted"] and rows["y"]["note"] == "not in the window"
    assert (
        "y not in the window" in verdict.summary and "1 columns are not in the reference" in verdict.summary
    )


def test_odd_names_are_only_names():
    odd = ["a b", "feature.x", "</script><script>", "prediction%", "é", "__index_level_0__"]
    features = {name: NUMBERS for name in odd}
    verdict = drift(window_of(features), reference_of(features), WINDOW)
    assert {row["column"] for row in verdict.evidence} == set(odd) and verdict.status == "ok"


@pytest.mark.parametrize("n", [0, 1, 199])
def test_too_few_rows_are_unknown(n):
    verdict = drift(window_of({"x": NUMBERS[:n]}), reference_of({"x": NUMBERS}), WINDOW)
    assert verdict.status == "unknown" and f"{n} rows" in verdict.summary and verdict.metrics == {"rows": n}
    assert drift(window_of({"x": NUMBERS}), reference_of({"x": NUMBERS[:n]}), WINDOW).status == "unknown"


def test_no_reference_is_unknown():
    assert drift(window_of({"x": NUMBERS}), None, WINDOW).status == "unknown"


def test_one_row_is_enough_not_to_raise():
    verdict = drift(
        window_of({"x": NUMBERS[:1]}), reference_of({"x": NUMBERS[:1]}), WINDOW, DriftSpec(min_rows=1)
    )
    assert verdict.status == "ok"


def test_thresholds_come_from_the_policy():
    policy = PolicySpec.parse({"drift_share": 0.5, "min_rows": 50, "confidence": 0.99, "drift_effect": 0.2})
    assert DriftSpec.of(policy) == DriftSpec(min_rows=50, share=0.5, alpha=0.01, effect=0.2)


def test_rows_beyond_the_cap_are_sampled_alike_every_time():
    rng = np.random.default_rng(9)
    old, new = rng.normal(0, 1, 20_000), rng.normal(0.3, 1, 20_000)
    spec = DriftSpec(max_rows=2000)
    first, second = (drift(window_of({"x": new}), reference_of({"x": old}), WINDOW, spec) for _ in range(2))
    assert first == second and first.evidence[0]["drifted"] and first.metrics["rows"] == 20_000


def test_detected_and_drifted_are_told_apart():
    rng = np.random.default_rng(5)
    reference = reference_of({"x": rng.normal(0, 1, 20_000), "y": rng.normal(0, 1, 20_000)})
    rows = window_of({"x": rng.normal(0.05, 1, 20_000), "y": rng.normal(0.2, 1, 20_000)})
    verdict = drift(rows, reference, WINDOW)
    found = {row["column"]: (row["detected"], row["drifted"]) for row in verdict.evidence}
    assert found == {"x": (True, False), "y": (True, True)}
    assert (verdict.metrics["detected_columns"], verdict.metrics["drifted_columns"]) == (2, 1)


def test_labels_that_moved_are_a_warning_and_late_ones_are_not_missing():
    rng = np.random.default_rng(0)
    x, old = rng.normal(size=1000), rng.random(1000)
    reference = reference_of({"x": x}, label=(old < 0.2) * 1.0)
    late = pa.array((rng.random(1000) < 0.5) * 1.0, mask=np.arange(1000) % 3 == 0)
    verdict = drift(window_of({"x": x}, label=late), reference, WINDOW)
    row = next(row for row in verdict.evidence if row["role"] == "label")
    assert verdict.status == "warn" and row["drifted"] and row["missing_window"] == 0
    assert "labels moved" in verdict.summary and verdict.metrics["label_effect"] > 0.1
    few = pa.array(np.ones(1000), mask=np.arange(1000) % 6 != 0)
    assert "label" not in drift(window_of({"x": x}, label=few), reference, WINDOW).summary


def test_the_window_before_says_since_when_and_is_no_part_of_the_verdict():
    rng = np.random.default_rng(0)

    def window(shift_x, shift_y):
        return window_of(
            {"x": rng.normal(shift_x, 1, 1000), "y": rng.normal(shift_y, 1, 1000), "z": rng.normal(size=1000)}
        )

    reference = reference_of({name: rng.normal(size=1000) for name in "xyz"})
    rows, before = window(1, 1), window(1, 0)
    verdict, alone = drift(rows, reference, WINDOW, before=before), drift(rows, reference, WINDOW)
    assert {row["column"]: row["since"] for row in verdict.evidence} == {
        "x": "an earlier window",
        "y": "this window",
        "z": None,
    }
    assert verdict.metrics["share_since_before"] == pytest.approx(1 / 3)
    assert (verdict.status, verdict.summary) == (alone.status, alone.summary)
    assert [row["p_adjusted"] for row in verdict.evidence] == [row["p_adjusted"] for row in alone.evidence]
    assert drift(rows, reference, WINDOW, before=before.slice(0, 5)) == alone
    other = window_of({"x": ["word"] * 1000, "y": rng.normal(size=1000)})
    assert drift(rows, reference, WINDOW, before=other).status == alone.status


def of_days(rng, n=2800, days=28):
    """Return two columns that each day shifts, one that it does not, and the day of each row."""
    day = np.arange(n) * days // n
    moved = rng.normal(size=(2, days))
    return {
        "wet": pa.array(np.where(moved[0][day] + rng.normal(size=n) > 0, "wet", "dry")),
        "warm": 2 * moved[1][day] + rng.normal(size=n),
        "own": rng.normal(size=n),
    }


def test_days_that_differ_are_no_drift_where_the_times_are_known():
    rng = np.random.default_rng(0)
    independent, by_day = [], []
    for _ in range(12):
        old, new = of_days(rng), of_days(rng)
        known = reference_of(old, **{"flywheel.event_time": times(2800)})
        by_day.append(drift(window_of(new), known, WINDOW))
        plain = window_of(new).drop_columns(["event_time"])
        independent.append(drift(plain, reference_of(old), WINDOW))
    assert sum(v.status == "alarm" for v in independent) >= 10
    assert sum(v.status != "ok" for v in by_day) <= 3
    row = next(row for row in by_day[0].evidence if row["column"] == "warm")
    assert row["effective_rows_window"] < 100 and row["test"] == "ks, scores"


def test_a_change_far_beyond_what_days_do_is_found_all_the_same():
    rng = np.random.default_rng(0)
    old, new = of_days(rng), of_days(rng)
    new["warm"] = new["warm"] + 12
    known = reference_of(old, **{"flywheel.event_time": times(2800)})
    assert {row["column"] for row in drift(window_of(new), known, WINDOW).evidence if row["drifted"]} == {
        "warm"
    }


def test_few_rows_categories_are_not_named():
    person = ["mary@example.com"] + ["a", "b", "c"] * 333
    verdict = drift(window_of({"who": person}), reference_of({"who": ["a", "b", "c"] * 333}), WINDOW)
    (row,) = verdict.evidence
    assert "mary" not in row["note"] and row["note"].startswith("new: 1 rare ones")
