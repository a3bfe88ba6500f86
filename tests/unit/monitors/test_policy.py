from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_flywheel.monitors.all import NAMES, monitors
from mlflow_flywheel.monitors.policy import PolicySpec, PolicyState, decide
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import last_window
from mlflow_flywheel.pipelines.errors import BadInput

T0 = datetime(2013, 2, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def verdict(monitor: str, status: str, as_of: datetime = T0) -> Verdict:
    return Verdict(monitor, status, f"{monitor} is {status}", last_window(as_of, DAY))


def run(spec: PolicySpec, steps, state: PolicyState | None = None):
    """Decide once a day over (statuses, new labels) and return the decisions and the last state."""
    state, decisions = state or PolicyState(), []
    for day, (statuses, labels) in enumerate(steps):
        as_of = T0 + day * DAY
        decision, state = decide(
            spec, state, [verdict(m, s, as_of) for m, s in statuses.items()], labels, as_of
        )
        decisions.append(decision)
    return decisions, state


def test_nothing_happens_by_default():
    decisions, _ = run(PolicySpec(), [({"drift": "ok", "performance": "warn"}, 600)] * 3 + [({}, 0)])
    assert [d.action for d in decisions] == ["none"] * 4


def test_input_drift_alone_alerts_once_per_episode_and_never_retrains():
    alarm, ok = ({"drift": "alarm", "performance": "ok"}, 900), ({"drift": "ok", "performance": "ok"}, 900)
    decisions, _ = run(PolicySpec(), [alarm, alarm, alarm, ok, alarm])
    assert [d.action for d in decisions] == ["alert", "none", "none", "none", "alert"]
    assert decisions[0].reason == "drift is alarm"


def test_performance_alarm_retrains_after_consecutive_breaches():
    decisions, state = run(PolicySpec(consecutive=2), [({"performance": "alarm"}, 900)] * 3)
    assert [d.action for d in decisions] == ["alert", "retrain", "none"]
    assert "performance is alarm (2 in a row)" in decisions[1].reason
    assert decisions[1].evidence["new_labels"] == 900
    assert state.trained_at == T0 + DAY and state.attempts == (T0 + DAY,)


def test_unknown_neither_breaks_nor_lengthens_a_row_of_alarms():
    alarm, unknown, ok = (({"performance": s}, 900) for s in ("alarm", "unknown", "ok"))
    decisions, _ = run(PolicySpec(consecutive=2), [alarm, unknown, unknown, alarm])
    assert [d.action for d in decisions] == ["alert", "none", "none", "retrain"]
    decisions, _ = run(PolicySpec(consecutive=2), [alarm, ok, alarm])
    assert [d.action for d in decisions] == ["alert", "none", "alert"]


def test_a_monitor_that_is_not_heard_any_more_starts_anew():
    alarm, silent = ({"performance": "alarm"}, 900), ({"drift": "ok"}, 900)
    decisions, state = run(PolicySpec(consecutive=2), [alarm, silent, alarm])
    assert [d.action for d in decisions] == ["alert", "none", "alert"]
    assert state.breaches == {"performance": 1} and state.in_alarm == ("performance",)


def test_enough_new_labels_retrain_without_any_alarm():
    decisions, _ = run(
        PolicySpec(new_labels=1000), [({"performance": "ok"}, 999), ({"performance": "ok"}, 1000)]
    )
    assert [d.action for d in decisions] == ["none", "retrain"]
    assert decisions[1].reason.startswith("labels: 1,000 new labels")


def test_schedule_counts_from_the_first_decision_then_from_the_last_training():
    spec = PolicySpec.parse({"retrain_on": "schedule", "retrain_every": "3d", "cooldown": "0d", "budget": 99})
    decisions, _ = run(spec, [({}, 5000)] * 8)
    assert [d.action for d in decisions] == ["none"] * 3 + ["retrain"] + ["none"] * 2 + ["retrain", "none"]


def test_too_few_new_labels_hold_a_retraining_back_and_say_so():
    decisions, _ = run(PolicySpec(consecutive=1, min_labels=500), [({"performance": "alarm"}, 499)])
    assert decisions[0].action == "alert"
    assert "no retraining: 499 new labels, fewer than 500" in decisions[0].reason


def test_deciding_twice_for_one_moment_counts_an_alarm_once():
    spec, verdicts = PolicySpec(consecutive=2), [verdict("performance", "alarm")]
    _, once = decide(spec, PolicyState(), verdicts, 900, T0)
    decision, twice = decide(spec, once, verdicts, 900, T0)
    assert (decision.action, twice) == ("none", once)
    assert decide(spec, once, verdicts, 900, T0 - DAY)[1] == once


def test_state_and_spec_survive_json():
    spec = PolicySpec.parse({"window": "36h", "floor": "auc>=0.6,log_loss<=0.7", "retrain_on": ""})
    assert PolicySpec.parse(spec.model_dump(mode="json")) == spec
    assert PolicySpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.window == timedelta(hours=36) and spec.retrain_on == ()
    assert spec.changed({"window": "2d"}).floor == spec.floor
    _, state = run(PolicySpec(consecutive=1), [({"performance": "alarm"}, 900)])
    assert PolicyState.model_validate(state.model_dump(mode="json")) == state


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
        ({"retrain_on": "vibes"}, "'performance', 'labels', 'drift'"),
        ({"monitors": "drift,-performence"}, "no monitor 'performence' (did you mean 'performance'?)"),
        ({"monitor_schedule": "hourly"}, "cron line of five fields"),
        ({"confidence": "2"}, "less than 1"),
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


def test_every_setting_is_described():
    assert all(field.description for field in PolicySpec.model_fields.values())


STATUS = st.sampled_from(["ok", "warn", "alarm", "unknown"])
STEP = st.tuples(
    st.fixed_dictionaries({"drift": STATUS, "performance": STATUS}),
    st.integers(0, 3000),
    st.integers(0, 72),
)
SPECS = st.builds(
    PolicySpec,
    consecutive=st.integers(1, 4),
    cooldown=st.integers(0, 96).map(lambda hours: timedelta(hours=hours)),
    budget=st.integers(0, 3),
    budget_period=st.integers(1, 240).map(lambda hours: timedelta(hours=hours)),
    retrain_on=st.sets(st.sampled_from(["performance", "labels", "drift", "schedule"])).map(tuple),
    min_labels=st.integers(1, 2000),
    new_labels=st.integers(1, 3000),
    retrain_every=st.just(timedelta(days=2)),
)


@settings(max_examples=150, deadline=None)
@given(SPECS, st.lists(STEP, max_size=40))
def test_never_in_a_cooldown_over_budget_without_labels_or_without_breaches(spec, steps):
    state, as_of, retrained = PolicyState(), T0, []
    rows = {"drift": 0, "performance": 0}
    for statuses, labels, hours in steps:
        as_of += timedelta(hours=hours)
        repeated = state.decided_at is not None and as_of <= state.decided_at
        before = state
        decision, state = decide(
            spec, state, [verdict(m, s, as_of) for m, s in statuses.items()], labels, as_of
        )
        if repeated:
            assert decision.action == "none" and state == before
            continue
        for monitor, status in statuses.items():
            if status != "unknown":
                rows[monitor] = rows[monitor] + 1 if status == "alarm" else 0
        if decision.action == "retrain":
            assert not retrained or as_of - retrained[-1] >= spec.cooldown
            assert sum(as_of - moment < spec.budget_period for moment in retrained) < spec.budget
            assert labels >= spec.min_labels
            lasting = any(
                m in spec.retrain_on and statuses[m] == "alarm" and rows[m] >= spec.consecutive for m in rows
            )
            enough = "labels" in spec.retrain_on and labels >= spec.new_labels
            assert lasting or enough or "schedule" in spec.retrain_on
            retrained.append(as_of)
            rows = dict.fromkeys(rows, 0)
        elif decision.action == "alert":
            assert "alarm" in statuses.values()
