from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk
from support.backtests import LoggedRows, candidate, day, logistic

from mlflow_flywheel.monitors.backtest import BacktestSpec, backtest, cut
from mlflow_flywheel.monitors.backtest_page import page
from mlflow_flywheel.monitors.backtest_words import conclusion, leak_note, shown_state
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import Feature
from mlflow_flywheel.pipelines.training_window import TrainingWindow

WEEK = timedelta(days=7)


def spec(days=14, **more):
    return BacktestSpec(day(0), day(days), **({"every": WEEK} | more))


def spread(n, days=14, first=0):
    return [day(first + days * i / n) for i in range(n)]


def unknown(version):
    return None


def binary(n=600, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    return a, (rng.random(n) < 1 / (1 + np.exp(-2 * a))).astype(float)


@pytest.fixture
def logged(tmp_path: Path) -> LoggedRows:
    return LoggedRows(tmp_path)


def test_the_span_is_cut_into_periods_of_which_the_last_may_be_shorter():
    assert [(w.start, w.end) for w in cut(spec(10))] == [(day(0), day(7)), (day(7), day(10))]
    assert len(cut(spec(14))) == 2 and len(cut(spec(3))) == 1
    with pytest.raises(BadInput, match="longer --every"):
        cut(spec(14, every=timedelta(seconds=1)))


def test_metrics_of_two_classes_are_those_of_scikit_learn(logged):
    a, y = binary()
    logged.log({"a": a}, list(y), spread(600))
    result = backtest(logged.table, [candidate(logistic(), "a", classes=("0", "1"))], spec(), unknown)
    proba = 1 / (1 + np.exp(-a))
    for rows, period in zip((slice(0, 300), slice(300, 600)), result.periods, strict=True):
        (side,) = period.sides
        wanted = {
            "auc": sk.roc_auc_score(y[rows], proba[rows]),
            "log_loss": sk.log_loss(y[rows], proba[rows]),
            "accuracy": sk.accuracy_score(y[rows], proba[rows] > 0.5),
            "brier": sk.brier_score_loss(y[rows], proba[rows]),
        }
        for name, value in wanted.items():
            found = side.metrics[name]
            assert found.value == pytest.approx(value), name
            assert found.low < found.value < found.high, name
        assert 0 < side.metrics["calibration_error"].value < 0.3
        assert sum(b.rows for b in side.calibration) == 300
    assert result.overall.losses[0].value == pytest.approx(sk.log_loss(y, proba))
    assert result.overall.rows == 600 and result.overall.periods == 2


def test_more_classes_and_regression(tmp_path):
    rng = np.random.default_rng(1)
    proba = rng.dirichlet([1, 1, 1], 400)
    names = np.array(["high", "low", "mid"])
    truth = [str(rng.choice(names, p=p)) for p in proba]
    logged = LoggedRows(tmp_path / "classes", "string")
    logged.log({"a": proba[:, 0], "b": proba[:, 1], "c": proba[:, 2]}, truth, spread(400, 7))

    def said(frame):
        return names[frame.to_numpy().argmax(axis=1)], frame.to_numpy()

    one = candidate(said, "a", "b", "c", classes=tuple(names), kind="string")
    (period,) = backtest(logged.table, [one], spec(7), unknown).periods
    found = period.sides[0].metrics
    assert found["log_loss"].value == pytest.approx(sk.log_loss(truth, proba, labels=names))
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(truth, said_classes(proba, names)))

    numbers = LoggedRows(tmp_path / "numbers")
    x = rng.normal(size=400)
    y = 2 * x + rng.normal(size=400)
    numbers.log({"x": x}, list(y), spread(400, 7))
    double = candidate(lambda frame: (2 * frame["x"].to_numpy(), None), "x")
    constant = candidate(lambda frame: (np.zeros(len(frame)) + 0.5, None), "x", version="3")
    result = backtest(numbers.table, [double, constant], spec(7), unknown)
    (period,) = result.periods
    found = period.sides[0].metrics
    assert found["mae"].value == pytest.approx(sk.mean_absolute_error(y, 2 * x))
    assert found["r2"].value == pytest.approx(sk.r2_score(y, 2 * x))
    assert period.difference["mae"].high < 0 and "version 7 is better than version 3" in conclusion(result)
    assert "<svg" in page(result)


def said_classes(proba, names):
    return names[proba.argmax(axis=1)]


def test_the_paired_difference_is_narrower_than_the_two_intervals_and_zero_of_equals(logged):
    a, y = binary(2000)
    logged.log({"a": a}, list(y), spread(2000))
    near = [candidate(logistic(w), "a", classes=("0", "1"), version=v) for w, v in ((2.0, "7"), (1.9, "3"))]
    period = backtest(logged.table, near, spec(), unknown).periods[0]
    change, alone = period.difference["log_loss"], period.sides[0].metrics["log_loss"]
    assert change.low <= change.value <= change.high
    assert change.high - change.low < 0.2 * (alone.high - alone.low)
    same = backtest(logged.table, [near[0], near[0]], spec(), unknown)
    assert {(e.value, e.low, e.high) for p in same.periods for e in p.difference.values()} == {(0, 0, 0)}
    assert "cannot be told apart" in conclusion(same)


def test_an_event_counts_once_however_often_it_was_logged(logged):
    a, y = binary(100)
    times, clients = spread(100, 7), [f"order {i}" for i in range(100)]
    ids = logged.log({"a": a}, None, times, clients=clients)
    logged.log({"a": a}, None, times, ids=[f"{i}:shadow" for i in ids], variant="challenger", clients=clients)
    # Another deployment was asked the same events with broken features, and heard the labels.
    logged.log({"a": a}, list(y), times, deployment="stream", clients=clients)
    logged.log({"a": a[:5]}, [1.0] * 5, times[:5])  # rows without a request id are events of their own
    period = backtest(
        logged.table, [candidate(logistic(), "a", classes=("0", "1"))], spec(7), unknown
    ).periods[0]
    assert (period.events, period.repeated, period.labelled) == (105, 200, 105)
    assert period.sides[0].scored == 105


def test_an_event_that_is_asked_again_later_counts_where_its_latest_label_is(logged):
    a, y = binary(100)
    clients = [f"order {i}" for i in range(100)]
    logged.log({"a": a}, list(y), spread(100, 7), clients=clients)
    # Ten are asked again in the next period and hear another label, ten more do not.
    logged.log({"a": a[:10]}, list(1 - y[:10]), spread(10, 7, first=7), clients=clients[:10])
    logged.log({"a": a[10:20]}, None, spread(10, 7, first=7), clients=clients[10:20])
    one = candidate(logistic(), "a", classes=("0", "1"))
    first, second = backtest(logged.table, [one], spec(min_rows=5), unknown).periods
    assert [(p.events, p.repeated, p.labelled) for p in (first, second)] == [(90, 10, 90), (10, 10, 10)]
    proba = 1 / (1 + np.exp(-a[:10]))
    assert second.sides[0].metrics["log_loss"].value == pytest.approx(sk.log_loss(1 - y[:10], proba))


def test_rows_that_lack_a_feature_are_not_scored_and_the_reason_is_said(logged):
    a, y = binary(200)
    logged.log({"a": a}, list(y), spread(200, 7), version="1")
    logged.log({"b": a}, list(y), spread(200, 7, first=7), version="2")
    features = {"1": frozenset("a"), "2": frozenset("b")}
    old = candidate(logistic(), "a", classes=("0", "1"), version="1")
    new = candidate(logistic(column="b"), "b", Feature("a", "double", False), classes=("0", "1"), version="2")
    for known in (features.get, unknown):  # by the signatures, and by the rows alone when these are gone
        result = backtest(logged.table, [new, old], spec(), known)
        first, second = result.periods
        assert [side.scored for side in first.sides] == [0, 200]
        assert [side.scored for side in second.sides] == [200, 0]
        assert list(first.sides[0].unscored.values()) == [200]
        assert "feature 'b' was not logged" in next(iter(first.sides[0].unscored))
        assert "optional" in next(iter(second.sides[0].remarks))
        assert not first.difference and result.overall is None
        assert "feature &#x27;b&#x27; was not logged" in page(result)


def test_a_missing_value_is_no_missing_feature_and_an_integer_has_none(logged):
    a, y = binary(200)
    holed = np.where(np.arange(200) % 4 == 0, None, np.arange(200.0))
    logged.log({"a": a, "n": holed.astype(float)}, list(y), spread(200, 7))
    half = candidate(logistic(), "a", "n", classes=("0", "1"))
    whole = candidate(logistic(), "a", Feature("n", "long"), classes=("0", "1"), version="3")
    (period,) = backtest(logged.table, [half, whole], spec(7), unknown).periods
    assert [side.scored for side in period.sides] == [200, 150]
    assert "long" in next(iter(period.sides[1].unscored)) and "log_loss" in period.difference


def test_rows_of_the_training_window_are_marked_and_do_not_count(logged):
    a, y = binary(900)
    logged.log({"a": a}, list(y), spread(900, 21))
    window = TrainingWindow("its tags", day(-30), day(3.5), day(8))
    trained = candidate(logistic(), "a", classes=("0", "1"), training=window)
    free = candidate(
        logistic(0.5), "a", classes=("0", "1"), version="3", training=TrainingWindow("-", None, day(-1))
    )
    result = backtest(logged.table, [trained, free], spec(21), unknown)
    assert [p.sides[0].training_rows for p in result.periods] == [150, 0, 0]
    assert [p.sides[1].training_rows for p in result.periods] == [0, 0, 0]
    assert [p.sides[0].chosen_rows for p in result.periods] == [150, 43, 0]
    assert result.overall.rows == 600 and result.overall.periods == 2
    assert shown_state(result.periods[0], 50) == "in training window"
    said = leak_note(result)
    assert "150 rows in 1 period lie in that window" in said and "193 rows were the hold-out" in said
    assert "none of the rows that it scored lies in that window" in said and said in page(result)
    nobody = backtest(logged.table, [candidate(logistic(), "a", classes=("0", "1"))], spec(21), unknown)
    assert "is not known: nobody said so" in leak_note(nobody)


def test_periods_without_enough_labels_are_shown_as_such(logged):
    a, y = binary(200)
    labels = [label if i < 100 or i % 10 == 0 else None for i, label in enumerate(y)]
    logged.log({"a": a}, labels, spread(200))
    result = backtest(logged.table, [candidate(logistic(), "a", classes=("0", "1"))], spec(21), unknown)
    assert [shown_state(p, 50) for p in result.periods] == ["ok", "too few labels (10 of 50)", "no rows"]
    assert [p.coverage for p in result.periods] == [1.0, 0.1, None]
    assert not result.periods[1].sides[0].metrics
    assert "too few labels (10 of 50)" in page(result)


def test_a_span_without_rows_or_labels_is_an_error(logged):
    a, _ = binary(20)
    logged.log({"a": a}, None, spread(20))
    one = [candidate(logistic(), "a", classes=("0", "1"))]
    with pytest.raises(BadInput, match="none of the 20 logged rows.*flywheel feedback"):
        backtest(logged.table, one, spec(), unknown)
    with pytest.raises(BadInput, match="no logged rows in"):
        backtest(logged.table, one, BacktestSpec(day(50), day(60), WEEK), unknown)


def test_a_version_that_raises_is_said_to(logged):
    a, y = binary(100)
    logged.log({"a": a}, list(y), spread(100, 7))

    def broken(frame):
        raise RuntimeError("</script><img src=x onerror=alert(1)>")

    result = backtest(logged.table, [candidate(broken, "a")], spec(7), unknown)
    (reason,) = result.periods[0].sides[0].unscored
    assert "RuntimeError" in reason and result.periods[0].sides[0].unscored[reason] == 100
    html = page(result)
    assert "&lt;/script&gt;&lt;img" in html and "<img" not in html and "<script" not in html
