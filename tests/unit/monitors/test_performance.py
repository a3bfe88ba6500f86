from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as sk
from support.windows_of import WINDOW, probabilities, reference_of, two_classes, window_of

from mlflow_flywheel.monitors.measures import auc_with_influence, measure
from mlflow_flywheel.monitors.outcomes import infer_task, outcomes
from mlflow_flywheel.monitors.performance import PerformanceSpec, performance, reference_metrics
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.windows import Window

N = 4000


def binary(rng, n=N, signal=1.0, base=-1.0, shift=0.0):
    """Return columns of a classifier that knows `signal` of the truth; `shift` moves its log-odds off the mark."""
    x = rng.normal(0, 1, n)
    truth = rng.random(n) < 1 / (1 + np.exp(-(base + x)))
    score = 1 / (1 + np.exp(-(base + shift + signal * x + (1 - signal) * rng.normal(0, 1, n))))
    return {
        "prediction": (score > 0.5) * 1.0,
        "prediction_proba": two_classes(score),
        "label": truth * 1.0,
    }


def judge(now, before, **spec):
    return performance(window_of({}, **now), before, WINDOW, PerformanceSpec(**spec))


def test_binary_metrics_equal_sklearns():
    own = binary(np.random.default_rng(0))
    truth, predicted = own["label"], own["prediction"]
    score = np.array(own["prediction_proba"].to_pylist())[:, 1]
    found = reference_metrics(reference_of({}, **own))
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth, score))
    assert found["auc"] == pytest.approx(sk.roc_auc_score(truth, score))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(truth, score))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(sk.f1_score(truth, predicted))
    base = np.full(len(truth), truth.mean())
    assert found["skill"] == pytest.approx(1 - sk.log_loss(truth, score) / sk.log_loss(truth, base))
    assert found["base_rate"] == pytest.approx(truth.mean())


def test_multiclass_metrics_equal_sklearns_whatever_the_labels_types():
    rng = np.random.default_rng(1)
    names = np.array(["blue", "green", "red"])
    truth = rng.integers(0, 3, N)
    raw = rng.random((N, 3)) + 0.7 * np.eye(3)[truth]
    proba = raw / raw.sum(axis=1, keepdims=True)
    guess = proba.argmax(axis=1)
    for values in (names, np.array([3.0, 7.0, 11.0])):
        own = {"prediction": values[guess], "prediction_proba": probabilities(proba), "label": values[truth]}
        found = reference_metrics(reference_of({}, **own))
        assert found["log_loss"] == pytest.approx(sk.log_loss(truth, proba))
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
        assert found["f1_macro"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
        assert found["auc"] == pytest.approx(sk.roc_auc_score(truth, proba, multi_class="ovr"))
        assert found["brier"] == pytest.approx(((proba - np.eye(3)[truth]) ** 2).sum(1).mean())


def test_regression_metrics_equal_sklearns():
    rng = np.random.default_rng(2)
    truth = rng.normal(1e6, 3, N)
    predicted = truth + rng.normal(0.2, 1, N)
    found = reference_metrics(reference_of({}, prediction=predicted, label=truth))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, predicted))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, predicted))
    assert found["bias"] == pytest.approx(float((predicted - truth).mean()))
    constant = sk.mean_absolute_error(truth, np.full(N, np.median(truth)))
    assert found["skill"] == pytest.approx(1 - found["mae"] / constant)


def test_delongs_deviation_of_the_auc_agrees_with_a_bootstrap_of_rows():
    rng = np.random.default_rng(3)
    truth = rng.random(600) < 0.3
    score = np.round(truth * 0.5 + rng.normal(0, 1, 600), 1)
    area, pull = auc_with_influence(truth, score)
    drawn = [rng.integers(0, 600, 600) for _ in range(400)]
    spread = np.std([sk.roc_auc_score(truth[d], score[d]) for d in drawn])
    assert area == pytest.approx(sk.roc_auc_score(truth, score))
    assert pull.std() / np.sqrt(600) == pytest.approx(spread, rel=0.15)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, covered, runs = np.random.default_rng(4), {"auc": 0, "log_loss": 0}, 100
    truth = reference_metrics(reference_of({}, **binary(rng, 400_000)))
    for seed in range(runs):
        table = reference_of({}, **binary(rng, 600)).outcomes()
        measured = measure(outcomes(table, infer_task(table)), seed=seed, replicates=400)
        for name in covered:
            low, high = measured.interval(name, 0.9)
            covered[name] += low <= truth[name] <= high
    assert all(0.83 * runs <= count <= 0.97 * runs for count in covered.values()), covered


def test_rows_that_share_a_day_widen_the_interval():
    rng = np.random.default_rng(5)
    days = np.repeat(rng.normal(0, 1, 28), 100)
    truth = rng.normal(0, 1, 2800)
    table = window_of({}, prediction=truth + days, label=truth)
    task = infer_task(table)
    timed, untimed = (
        measure(outcomes(t, task))
        for t in (table, table.drop_columns(["event_time"]).take(rng.permutation(2800)))
    )
    widths = [np.diff(m.interval("mae", 0.95))[0] for m in (timed, untimed)]
    assert timed.blocks == 28 and widths[0] > 3 * widths[1]


def test_a_model_as_good_as_before_is_ok_and_seldom_a_false_alarm():
    rng, statuses = np.random.default_rng(6), []
    for _ in range(25):
        statuses.append(judge(binary(rng, 2000), reference_of({}, **binary(rng, 4000))).status)
    assert statuses.count("alarm") == 0 and statuses.count("ok") >= 15


def test_lost_ranking_is_an_alarm_with_the_numbers():
    rng = np.random.default_rng(7)
    verdict = judge(binary(rng, signal=0.3), reference_of({}, **binary(rng)))
    assert verdict.status == "alarm"
    assert "surely worse" in verdict.summary and "auc against the reference" in verdict.summary
    assert verdict.metrics["auc_low"] < verdict.metrics["auc"] < verdict.metrics["auc_high"]
    checks = {row["check"]: row for row in verdict.evidence if "check" in row}
    assert checks["auc against the reference"]["worse_by_low"] > 0.02


def test_probabilities_off_the_mark_are_an_alarm_though_the_ranking_stayed():
    rng = np.random.default_rng(8)
    verdict = judge(binary(rng, shift=1.5), reference_of({}, **binary(rng)))
    checks = {row["check"]: row["status"] for row in verdict.evidence if "check" in row}
    assert verdict.status == "alarm"
    assert (checks["skill against the reference"], checks["auc against the reference"]) == ("alarm", "ok")


def test_a_base_rate_that_moved_as_the_model_knew_is_no_alarm_though_log_loss_rose():
    rng = np.random.default_rng(9)
    before, now = binary(rng, 20_000, base=-2.5), binary(rng, 20_000, base=-0.5)
    verdict = judge(now, reference_of({}, **before))
    assert verdict.metrics["log_loss"] > 1.5 * reference_metrics(reference_of({}, **before))["log_loss"]
    assert verdict.status == "ok", verdict.summary


def test_a_base_rate_that_fell_hides_no_loss():
    rng = np.random.default_rng(10)
    before, now = binary(rng, 20_000, base=-0.5), binary(rng, 20_000, base=-2.5, shift=2.0)
    verdict = judge(now, reference_of({}, **before))
    assert verdict.metrics["log_loss"] < reference_metrics(reference_of({}, **before))["log_loss"]
    assert verdict.status == "alarm"


def test_a_floor_hears_when_the_reference_is_as_bad():
    rng = np.random.default_rng(11)
    poor = binary(rng, signal=0.3)
    reference = reference_of({}, **binary(rng, signal=0.3))
    assert judge(poor, reference).status in ("ok", "alarm")
    floor = PolicySpec.parse({"floor": "auc>=0.7"}).floor
    verdict = judge(poor, reference, floor=floor)
    assert verdict.status == "alarm" and "floor auc>=0.7" in verdict.summary


def test_worse_than_a_constant_answer_is_an_alarm_without_any_reference():
    rng = np.random.default_rng(12)
    assert judge(binary(rng, signal=0.0, shift=1.0), None).status == "alarm"
    assert judge(binary(rng), None).status == "ok"


def test_a_model_that_never_beat_a_constant_answer_is_not_alarmed_for_it():
    rng = np.random.default_rng(13)
    verdict = judge(binary(rng, shift=2.5), reference_of({}, **binary(rng, shift=2.5)))
    assert verdict.metrics["skill"] < 0 and verdict.status == "ok", verdict.summary


def test_regression_is_judged_by_its_relative_error():
    rng = np.random.default_rng(14)
    truth = rng.normal(0, 10, N)
    reference = reference_of({}, prediction=truth + rng.normal(0, 1, N), label=truth)
    for noise, status in ((1.0, "ok"), (1.2, "alarm")):
        verdict = judge({"prediction": truth + rng.normal(0, noise, N), "label": truth}, reference)
        assert verdict.status == status, verdict.summary
    assert "mae against the reference" in verdict.summary


def test_classes_without_probabilities_are_judged_by_accuracy():
    rng = np.random.default_rng(15)
    truth = rng.choice(["a", "b", "c"], N)

    def answers(share):
        return np.where(rng.random(N) < share, truth, rng.choice(["a", "b", "c"], N))

    reference = reference_of({}, prediction=answers(0.8), label=truth)
    assert judge({"prediction": answers(0.8), "label": truth}, reference).status == "ok"
    worse = judge({"prediction": answers(0.6), "label": truth}, reference)
    assert worse.status == "alarm" and "accuracy against the reference" in worse.summary


def test_coverage_and_delay_of_labels_are_told_and_unlabelled_rows_left_out():
    own = binary(np.random.default_rng(16), 1000)
    label = pa.array(own["label"], pa.float64(), mask=np.arange(1000) % 4 != 0)
    table = window_of({}, **{**own, "label": label})
    kind = table["event_time"].type
    true = pa.array([t.as_py() + timedelta(hours=6) for t in table["event_time"]], kind)
    # every fifth label comes a day after it was true
    here = pa.array([t.as_py() + timedelta(days=i % 5 == 0) for i, t in enumerate(true)], kind)
    table = table.append_column("label_time", true).append_column("received_time", here)
    verdict = performance(table, None, WINDOW)
    assert verdict.metrics["label_rows"] == 250 and verdict.metrics["label_coverage"] == 0.25
    metrics = verdict.metrics
    assert (metrics["label_delay_hours"], metrics["label_delay_hours_p90"]) == (6.0, 6.0)
    assert (metrics["label_arrival_hours"], metrics["label_arrival_hours_p90"]) == (6.0, 30.0)
    few = performance(table.slice(0, 100), None, WINDOW)
    assert few.status == "unknown" and "25 of 100 rows have a label" in few.summary
    assert performance(table.slice(0, 0), None, WINDOW).status == "unknown"


def test_labels_as_texts_numbers_and_booleans_mean_the_same():
    own = binary(np.random.default_rng(17), 1000)
    plain = performance(window_of({}, **own), None, WINDOW).metrics
    for label in (
        own["label"].astype(bool),
        own["label"].astype(int).astype(str),
        own["label"].astype(bool).astype(str),
    ):
        assert performance(window_of({}, **{**own, "label": label}), None, WINDOW).metrics == plain


def test_labels_that_are_no_numbers_are_counted_not_raised():
    rng = np.random.default_rng(18)
    truth = rng.normal(0, 1, 1000)
    label = [f"{v}" if i % 10 else "n/a" for i, v in enumerate(truth)]
    verdict = performance(window_of({}, prediction=truth, label=label), None, WINDOW)
    assert "100 labels cannot be read" in verdict.summary and verdict.metrics["mae"] == pytest.approx(0)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only_leaves_out_what_is_not_defined(label):
    own = binary(np.random.default_rng(19), 500) | {"label": np.full(500, label)}
    verdict = performance(window_of({}, **own), reference_of({}, **binary(np.random.default_rng(20))), WINDOW)
    assert "auc" not in verdict.metrics and "skill" not in verdict.metrics and "accuracy" in verdict.metrics
    assert verdict.status in ("ok", "warn", "alarm")


def test_a_label_the_model_does_not_know_counts_as_a_full_miss():
    own = binary(np.random.default_rng(21), 1000)
    before = performance(window_of({}, **own), None, WINDOW).metrics
    strange = own | {"label": np.where(np.arange(1000) < 10, 7.0, own["label"])}
    after = performance(window_of({}, **strange), reference_of({}, **own), WINDOW).metrics
    assert after["log_loss"] > before["log_loss"] and after["accuracy"] < before["accuracy"]


def test_constant_and_missing_values_of_a_regressor_do_not_raise():
    truth = np.where(np.arange(500) < 50, np.nan, 3.0)
    verdict = performance(window_of({}, prediction=np.full(500, 3.0), label=truth), None, WINDOW)
    assert verdict.metrics["mae"] == 0 and "r2" not in verdict.metrics and verdict.status == "ok"


def test_the_verdict_is_the_same_every_time():
    own = binary(np.random.default_rng(22))
    assert judge(own, None) == judge(own, None)


def test_thresholds_come_from_the_policy():
    policy = PolicySpec.parse({"min_rows": 50, "confidence": 0.9, "loss_margin": 0.1, "ranking_margin": 0.05})
    assert PerformanceSpec.of(policy) == PerformanceSpec(50, 0.9, 0.1, 0.05)


@pytest.mark.parametrize(("days", "status"), [(30, "alarm"), (29, "warn")])
def test_a_sudden_change_shows_in_the_newest_third_where_that_has_ten_days(days, status):
    """Of the newest sixth of a window the answers are noise."""
    rng = np.random.default_rng(5)
    before, now = reference_of({}, **binary(rng)), binary(rng)
    said = np.array(now["prediction_proba"].to_pylist())
    said[-N // 6 :] = rng.permutation(said[-N // 6 :])
    now["prediction_proba"] = two_classes(said[:, 1])
    start, length = WINDOW.start, timedelta(days=days)
    micros = int(start.timestamp() * 1e6) + np.arange(N) * int(length.total_seconds() * 1e6) // N
    rows = window_of({}, **now, event_time=pa.array(micros, pa.timestamp("us", tz="UTC")))
    found = performance(rows, before, Window(start, start + length))
    assert found.status == status
    assert ("newest third" in found.summary) == (status == "alarm")
