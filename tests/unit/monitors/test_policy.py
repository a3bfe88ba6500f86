from datetime import datetime, timedelta

import pytest

from mlflow_flywheel.monitors.all import NAMES, monitors
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"windw": "3d"}, "did you mean 'window'"),
        ({"window": "3 days"}, "'3 days' is not a duration"),
        ({"window": "0d"}, "longer than nothing"),
        ({"max_age": "0d"}, "longer than nothing"),
        ({"max_latency_ms": "-1"}, "greater than 0"),
        ({"floor": "acu>=0.6"}, "'acu' is not a metric"),
        ({"floor": "auc>0.6"}, "is not a bound"),
        ({"retrain_on": "labls"}, "did you mean 'labels'"),
        ({"quiet_hours": "22-6"}, "'22-6' are no hours of the day"),
        ({"quiet_hours": "22:00-22:00"}, "write a start and an end"),
        ({"timezone": "Europe/Berlyn"}, "there is no time zone 'Europe/Berlyn'"),
        ({"monitors": "drift,-performence"}, "no monitor 'performence' (did you mean 'performance'?)"),
        ({"monitor_schedule": "hourly"}, "cron line of five fields"),
        ({"confidence": "2"}, "less than 1"),
        ({"training_windows": "30d,fortnight"}, "'fortnight' is not a duration; write a number"),
        ({"training_windows": "30d,720h"}, "stands there twice"),
        ({"training_windows": "30d"}, "one window leaves no choice"),
        ({"recency_half_life": "0d"}, "longer than nothing"),
        ({"class_balance": "weight"}, "'none', 'weights' or 'downsample'"),
        ({"retrain_wiht": "x"}, "did you mean 'retrain_with'"),
        ({"retrain_with": "projects/late"}, "give an absolute folder, or a URI that git"),
        ({"retrain_with": "rm -rf / #:x"}, "neither module:function nor an MLflow project"),
        ({"retrain_with": "ext::sh -c x"}, "neither module:function nor an MLflow project"),
        ({"retrain_with": "https://me:secret@host/late"}, "policies are shown"),
        ({"retrain_entry_point": "--help"}, "not beginning with '-'"),
        ({"retrain_version": "a b"}, "is no name"),
        ({"retrain_parameters": "epochs"}, "'epochs' is no parameter"),
        ({"retrain_parameters": "training_set=/mine"}, "give yours another name"),
        ({"retrain_environment": "uv", "retrain_with": "shop.late:refit"}, "are for MLflow projects"),
        ({"training_windows": "30d,all", "retrain_with": "shop.late:refit"}, "trains otherwise"),
    ],
)
def test_settings_that_do_not_fit_name_the_setting_and_the_remedy(raw, says):
    with pytest.raises(BadInput) as error:
        PolicySpec.parse(raw)
    assert says in str(error.value) and next(iter(raw)) in str(error.value)


@pytest.mark.parametrize(
    ("asked", "watching"),
    [
        ("all", NAMES),
        ("performance,drift", ("drift", "performance")),
        ("-drift", tuple(name for name in NAMES if name != "drift")),
        ("all,-drift", tuple(name for name in NAMES if name != "drift")),
        ("drift,performance,-drift", ("performance",)),
        ("", ()),
    ],
)
def test_monitors_are_chosen_by_name_or_left_out(asked, watching):
    spec = PolicySpec.parse({"monitors": asked})
    assert spec.watched_by == watching
    assert [monitor.name for monitor in monitors(spec.watched_by)] == list(watching)
    assert PolicySpec.parse(spec.model_dump(mode="json")) == spec


def test_bounds_can_be_taken_away_again():
    bounded = PolicySpec.parse({"max_age": "36h", "max_latency_ms": "5"})
    assert (bounded.max_age, bounded.max_latency_ms) == (timedelta(hours=36), 5.0)
    assert bounded.changed({"max_age": "", "max_latency_ms": ""}) == PolicySpec()


def test_a_retraining_looks_as_far_back_as_its_longest_window():
    policy = PolicySpec.parse({"training_windows": "30d, 180d,all"})
    assert [(w.name, w.length) for w in policy.training_windows] == [
        ("30d", timedelta(days=30)),
        ("180d", timedelta(days=180)),
        ("all", None),
    ]
    assert policy.training_span == timedelta(days=180)
    assert PolicySpec().training_span == timedelta(days=90)


@pytest.mark.parametrize(
    "code",
    ["/srv/late", "git@github.com:us/late.git#train", "https://github.com/us/late", "shop.late:refit", ""],
)
def test_projects_and_functions_are_taken_as_they_are(code):
    assert PolicySpec.parse({"retrain_with": code}).retrain_with == code


def test_every_setting_is_described():
    assert all(field.description for field in PolicySpec.model_fields.values())


def test_a_policy_survives_json():
    raw = {"window": "36h", "floor": "auc>=0.6,log_loss<=0.7", "retrain_on": "", "quiet_hours": "22:00-6:00"}
    spec = PolicySpec.parse(raw)
    assert PolicySpec.parse(spec.model_dump(mode="json")) == spec
    assert PolicySpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.window == timedelta(hours=36) and spec.retrain_on == ()
    assert [str(span) for span in spec.quiet_hours] == ["22:00-06:00"]
    assert spec.changed({"window": "2d"}).floor == spec.floor


@pytest.mark.parametrize(
    ("span", "zone", "utc", "quiet"),
    [
        ("22:00-06:00", "UTC", "21:59", False),
        ("22:00-06:00", "UTC", "22:00", True),
        ("22:00-06:00", "UTC", "05:59", True),
        ("22:00-06:00", "UTC", "06:00", False),
        ("12:00-13:00", "UTC", "12:30", True),
        ("12:00-13:00", "UTC", "13:00", False),
        ("22:00-06:00", "Europe/Berlin", "20:30", True),  # summer time: two hours ahead
        ("22:00-06:00", "America/New_York", "09:59", True),
    ],
)
def test_quiet_hours_go_by_the_clock_of_their_zone(span, zone, utc, quiet):
    (hours,) = PolicySpec.parse({"quiet_hours": span}).quiet_hours
    assert hours.hold(datetime.fromisoformat(f"2024-07-01T{utc}+00:00"), zone) == quiet
