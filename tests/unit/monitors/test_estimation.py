from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from support.windows_of import WINDOW, probabilities, reference_of, times, two_classes, window_of

from mlflow_flywheel.monitors.estimation.calibrators import calibrate
from mlflow_flywheel.monitors.estimation.cells import Grid, logit
from mlflow_flywheel.monitors.estimation.estimator import teach
from mlflow_flywheel.monitors.estimation.monitor import EstimationSpec, estimation
from mlflow_flywheel.monitors.estimation.support import rows_alike, weights_of
from mlflow_flywheel.monitors.measures import block_weights, measure
from mlflow_flywheel.monitors.outcomes import infer_task, outcomes
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.monitors.windows import Window

DAYS = 28


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def by_day(rng, n, deviation):
    return np.repeat(rng.normal(0, deviation, DAYS), -(-n // DAYS))[:n]


def binary(rng, n, centre=0.0, spread=1.0, sure=1.0, day=0.0, concept=0.0):
    """Return features and columns of a classifier whose log-odds are `sure` times the truth; days differ by `day`."""
    x = rng.normal(centre, spread, n)
    truth = rng.random(n) < sigmoid(x - 1 + by_day(rng, n, day) + concept)
    score = sigmoid(sure * (x - 1))
    own = {"prediction": (score > 0.5) * 1.0, "prediction_proba": two_classes(score), "label": truth * 1.0}
    return {"x": x}, own


def regression(rng, n, centre=0.0, day=0.0):
    """Return features and columns of a regressor that errs more where x is great, and most for the word "loud"."""
    x, word = rng.normal(centre, 1, n), rng.choice(["calm", "loud"], n)
    size = np.exp(x / 2 + (word == "loud") / 2 + by_day(rng, n, day))
    return {"x": x, "word": word}, {"prediction": x, "label": x + rng.normal(0, 1, n) * size}


def reference_at(columns):
    features, own = columns
    n = len(own["label"])
    return reference_of(features, **own, **{"flywheel.event_time": times(n)})


def rows_at(columns, window=WINDOW):
    features, own = columns
    rows = window_of(features, **own)
    if window == WINDOW:
        return rows
    moved = pa.array(
        [t.as_py() + (window.start - WINDOW.start) for t in rows["event_time"]], pa.timestamp("us", tz="UTC")
    )
    return rows.set_column(0, "event_time", moved)


def unlabelled(rows):
    at = rows.column_names.index("label")
    return rows.set_column(at, "label", pa.nulls(rows.num_rows, rows["label"].type))


def estimated_and_came(reference, rows):
    task = infer_task(reference.outcomes(), rows)
    estimator = teach(reference.table, reference.feature_names, rows, task, 0)
    assert not isinstance(estimator, str), estimator
    return estimator.estimate(unlabelled(rows)), measure(outcomes(rows, task), replicates=1).metrics


@pytest.mark.parametrize(
    ("draw", "here", "there"),
    [
        (binary, {"sure": 2.0}, {"sure": 2.0}),
        (binary, {}, {"centre": 1.0}),
        (binary, {"day": 0.7}, {"day": 0.7}),
        (regression, {}, {"centre": 0.7}),
    ],
    ids=["over-confident", "other rows", "days that differ", "regression"],
)
def test_what_comes_is_in_the_interval_about_as_often_as_it_says(draw, here, there):
    runs, hits = (3 if draw is regression else 12), {}
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        found, came = estimated_and_came(
            reference_at(draw(rng, 800, **here)), rows_at(draw(rng, 800, **there))
        )
        for name in {"auc", "log_loss", "mae"} & set(found.metrics):
            low, high = found.interval(name, 0.9)
            hits[name] = hits.get(name, 0) + (low <= came[name] <= high)
    assert hits and all(count >= runs * 0.9 - 2 for count in hits.values()), hits


def test_other_rows_move_the_estimate_to_where_the_truth_went():
    rng = np.random.default_rng(1)
    reference = reference_at(binary(rng, 4000, sure=2.0))
    found, came = estimated_and_came(reference, rows_at(binary(rng, 4000, centre=1.5, sure=2.0)))
    was = measure(outcomes(reference.outcomes(), infer_task(reference.outcomes())), replicates=1).metrics
    for name in ("log_loss", "brier", "accuracy"):
        assert abs(came[name] - was[name]) > 0.025
        assert found.metrics[name] == pytest.approx(came[name], abs=0.015), name


def test_every_metric_of_several_classes_is_estimated():
    rng = np.random.default_rng(2)

    def draw(n, spread):
        raw = rng.normal(0, spread, (n, 3))
        proba = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
        truth = (rng.random(n)[:, None] > np.cumsum(proba, axis=1)).sum(axis=1)
        sharp = proba**1.5 / (proba**1.5).sum(axis=1, keepdims=True)
        names = np.array(["a", "b", "c"])
        own = {"prediction": names[sharp.argmax(axis=1)], "prediction_proba": probabilities(sharp)}
        return {}, own | {"label": names[np.minimum(truth, 2)]}

    found, came = estimated_and_came(reference_at(draw(4000, 1.5)), rows_at(draw(6000, 0.8)))
    assert set(found.metrics) == {"log_loss", "brier", "accuracy", "skill", "auc"}
    for name, value in found.metrics.items():
        low, high = found.interval(name, 0.99)
        assert value == pytest.approx(came[name], abs=0.03) and low <= came[name] <= high, name


def test_a_classifier_without_probabilities_is_estimated_from_the_features():
    rng = np.random.default_rng(3)

    def draw(n, centre):
        x = rng.normal(centre, 1, n)
        truth = rng.choice(["no", "yes"], n)
        return {"x": x}, {"prediction": np.where(rng.random(n) < sigmoid(2 - x), truth, "no"), "label": truth}

    found, came = estimated_and_came(reference_at(draw(3000, 0.0)), rows_at(draw(3000, 1.0)))
    assert found.metrics["accuracy"] == pytest.approx(came["accuracy"], abs=0.03)


def test_days_that_differ_make_the_interval_wider():
    widths = []
    for day in (0.0, 0.8):
        rng = np.random.default_rng(4)
        found, _ = estimated_and_came(
            reference_at(binary(rng, 4000, day=day)), rows_at(binary(rng, 4000, day=day))
        )
        low, high = found.interval("log_loss", 0.9)
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_isotonic_is_taken_where_it_is_surely_better_and_never_on_few_rows():
    rng = np.random.default_rng(5)
    for n, truth_of, kind in (
        (20_000, lambda s: np.where(s > 0.5, 0.8, 0.2), "isotonic"),
        (20_000, lambda s: sigmoid(2 * logit(s) + 1), "beta"),
        (300, lambda s: s, "beta"),
    ):
        score = rng.uniform(0.02, 0.98, n)
        hit = (rng.random(n) < truth_of(score)) * 1.0
        grid, blocks = Grid.over(score), np.arange(n) % 20
        places = grid.place(score)
        rows, hits = grid.sums(places, blocks), grid.sums(places, blocks, hit)
        made = calibrate(grid, rows, hits, block_weights(20, 0))
        assert made.kind == kind
        assert np.abs(made.probability[0][places] - truth_of(score)).mean() < (0.02 if n > 300 else 0.08)


def test_rows_that_the_model_ranks_worse_are_an_alarm_before_any_label():
    rng = np.random.default_rng(6)
    reference = reference_at(binary(rng, 4000))
    verdict = estimation(unlabelled(rows_at(binary(rng, 4000, spread=0.3))), reference, WINDOW)
    assert verdict.status == "alarm" and "auc against the reference" in verdict.summary
    assert verdict.metrics["estimated_auc_low"] < verdict.metrics["estimated_auc"] < 0.65
    assert "realised_auc" not in verdict.metrics and "0 of them with a label" in verdict.summary


def test_rows_as_in_the_reference_are_seldom_an_alarm():
    rng, statuses = np.random.default_rng(7), []
    for _ in range(8):
        reference = reference_at(binary(rng, 2000, day=0.3))
        statuses.append(estimation(unlabelled(rows_at(binary(rng, 2000, day=0.3))), reference, WINDOW).status)
    assert "alarm" not in statuses and statuses.count("ok") >= 5


def test_a_meaning_that_changed_is_not_seen_but_told_once_labels_come():
    rng = np.random.default_rng(8)
    reference = reference_at(binary(rng, 4000))
    changed = rows_at(binary(rng, 4000, concept=-1.5))
    assert estimation(unlabelled(changed), reference, WINDOW).status == "ok"
    verdict = estimation(changed, reference, WINDOW)
    assert verdict.status == "ok" and "estimates are not to be trusted now" in verdict.summary
    assert verdict.metrics["gap_skill"] > 0.1 and verdict.metrics["compared_rows"] == 4000
    compared = [row for row in verdict.evidence if "compared_from" in row and row["metric"] == "skill"]
    assert len(compared) == verdict.metrics["compared_periods"] == 4
    assert not any(row["inside"] for row in compared)


def test_an_alarm_of_estimates_that_were_wrong_lately_is_a_warning():
    rng = np.random.default_rng(9)
    reference = reference_at(binary(rng, 4000))
    features, own = binary(rng, 4000, spread=0.3)
    own["label"] = np.where(rng.random(4000) < 0.95, own["prediction"], 1 - own["prediction"])
    verdict = estimation(rows_at((features, own)), reference, WINDOW)
    assert (
        verdict.status == "warn"
        and "surely worse" in verdict.summary
        and "not to be trusted" in verdict.summary
    )


def test_recent_labels_teach_and_the_window_before_is_compared():
    rng, before = np.random.default_rng(10), WINDOW.before()
    reference = reference_at(binary(rng, 2000))
    recent = rows_at(binary(rng, 8000, concept=-1.5), before)
    now = rows_at(binary(rng, 4000, concept=-1.5))
    came = measure(outcomes(now, infer_task(now)), replicates=1).metrics["log_loss"]
    alone = estimation(unlabelled(now), reference, WINDOW).metrics["estimated_log_loss"]
    verdict = estimation(unlabelled(now), reference, WINDOW, before=recent)
    assert abs(verdict.metrics["estimated_log_loss"] - came) < abs(alone - came) / 2
    # What was wrong before is sure to be less: the interval is as wide as the estimates of the window before were off.
    low, high = (verdict.metrics[f"estimated_log_loss_{end}"] for end in ("low", "high"))
    assert high - low > abs(alone - came)
    assert verdict.metrics["missed_periods"] == 4 and "not to be trusted" in verdict.summary


def test_rows_unlike_all_that_was_learnt_are_unknown():
    rng = np.random.default_rng(14)
    reference = reference_at(binary(rng, 2000))
    verdict = estimation(unlabelled(rows_at(binary(rng, 2000, centre=4.0))), reference, WINDOW)
    assert verdict.status == "unknown" and "rows are like only" in verdict.summary
    assert verdict.metrics["rows_alike"] < 100 and "estimated_auc" in verdict.metrics


@pytest.mark.parametrize(("centre", "low", "high"), [(0.0, 0.97, 1.0), (0.7, 0.45, 0.8)])
def test_rows_count_by_how_like_they_are_to_those_that_are_asked_about(centre, low, high):
    rng = np.random.default_rng(15)
    reference, rows = reference_at(regression(rng, 2000)), rows_at(regression(rng, 2000, centre))
    known = reference.table["x"].to_numpy()
    weights = weights_of(known[:, None], rows["feature.x"].to_numpy()[:, None], [False])
    assert (weights * known).mean() == pytest.approx(centre, abs=0.15)
    # exp(-centre ** 2) for normal numbers that moved
    assert low * 2000 <= rows_alike(reference.table, reference.feature_names, rows) <= high * 2000


def test_features_that_are_lost_or_new_stop_no_estimate_of_errors():
    rng = np.random.default_rng(11)
    reference, (features, own) = reference_at(regression(rng, 1000)), regression(rng, 1000)
    task = infer_task(reference.outcomes())
    estimator = teach(reference.table, reference.feature_names, reference.table, task, 0)
    for changed in (
        {"x": features["x"]},
        features | {"word": np.full(1000, "new")},
        features | {"x": np.full(1000, np.inf)},
        features | {"x": np.full(1000, "oops")},
    ):
        assert estimator.estimate(rows_at((changed, own))).metrics["mae"] > 0


def test_without_something_to_learn_from_it_is_unknown_and_says_why():
    rng = np.random.default_rng(12)
    rows, own = rows_at(binary(rng, 500)), binary(rng, 500)
    nobody = reference_at((own[0], own[1] | {"label": np.zeros(500)}))
    plain = rows.drop_columns(["prediction_proba"])
    for found, says in (
        (estimation(rows, None, WINDOW), "no labelled reference"),
        (estimation(rows, Reference(pa.table({"x": [1.0]})), WINDOW), "no labelled reference"),
        (estimation(rows.slice(0, 20), reference_at(own), WINDOW), "20 rows in the window, fewer than 200"),
        (estimation(rows, reference_at(binary(rng, 60)), WINDOW), "60 labelled rows, too few"),
        (estimation(rows, nobody, WINDOW), "0 rows of class 1"),
        (estimation(plain, reference_at(own), WINDOW), "no probabilities"),
    ):
        assert found.status == "unknown" and says in found.summary


def test_thresholds_come_from_the_policy_and_retraining_for_it_must_be_asked_for():
    policy = PolicySpec.parse({"min_rows": 50, "confidence": 0.9, "loss_margin": 0.1})
    assert EstimationSpec.of(policy) == EstimationSpec(50, 0.9, 0.1, 0.02)
    assert "estimation" not in policy.retrain_on
    assert "estimation" in PolicySpec.parse({"retrain_on": "performance,estimation"}).retrain_on


def test_a_window_of_an_odd_length_is_compared_to_its_end():
    odd = Window(WINDOW.start, WINDOW.start + timedelta(days=28, seconds=1))
    rng = np.random.default_rng(13)
    verdict = estimation(rows_at(binary(rng, 1000)), reference_at(binary(rng, 1000)), odd)
    rows = [row["rows"] for row in verdict.evidence if "compared_from" in row and row["metric"] == "skill"]
    assert sum(rows) == 1000
