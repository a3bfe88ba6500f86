from datetime import datetime, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_flywheel.monitors.decisions import PolicyState, decide
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import last_window

T0 = datetime(2013, 2, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def verdict(monitor: str, status: str, as_of: datetime = T0) -> Verdict:
    return Verdict(monitor, status, f"{monitor} is {status}", last_window(as_of, DAY))


def run(spec: PolicySpec, steps, *, every: timedelta = DAY, versions=(), paused=()):
    """Decide once a day over (statuses, new labels) and return the decisions and the last state."""
    state, decisions = PolicyState(), []
    for step, (statuses, labels) in enumerate(steps):
        as_of = T0 + step * every
        decision, state = decide(
            spec,
            state,
            [verdict(m, s, as_of) for m, s in statuses.items()],
            labels,
            as_of,
            version=versions[step] if versions else "1",
            paused="by ada" if step in paused else "",
        )
        decisions.append(decision)
    return decisions, state


def actions(decisions):
    """Return all that was done, per step."""
    return ["+".join(d.action for d in (one, *one.also)) for one in decisions]


def test_nothing_happens_by_default():
    decisions, _ = run(PolicySpec(), [({"drift": "ok", "performance": "warn"}, 600)] * 3 + [({}, 0)])
    assert [d.action for d in decisions] == ["none"] * 4


def test_input_drift_alone_alerts_once_per_episode_and_never_retrains():
    alarm, ok = ({"drift": "alarm", "performance": "ok"}, 900), ({"drift": "ok", "performance": "ok"}, 900)
    decisions, _ = run(PolicySpec(), [alarm, alarm, alarm, ok, ok, alarm])
    assert actions(decisions) == ["alert", "none", "none", "alert_end", "none", "alert"]
    assert decisions[0].reason == "drift is alarm"
    assert decisions[3].reason == "drift: its alarm of 2013-02-01 00:00 is over"


def test_performance_alarm_retrains_after_consecutive_breaches():
    decisions, state = run(PolicySpec(consecutive=2), [({"performance": "alarm"}, 900)] * 3)
    assert [d.action for d in decisions] == ["alert", "retrain", "none"]
    assert "performance is alarm (2 in a row)" in decisions[1].reason
    assert decisions[1].evidence["new_labels"] == 900
    assert state.trained_at == T0 + DAY and state.attempts == (T0 + DAY,)


def test_an_estimated_loss_retrains_only_where_that_was_asked_for():
    steps = [({"estimation": "alarm", "slices": "alarm"}, 900)] * 2
    for asked, second in (("performance,labels", "none"), ("estimation", "retrain")):
        spec = PolicySpec.parse({"retrain_on": asked})
        assert [d.action for d in run(spec, steps)[0]] == ["alert", second]


def test_unknown_neither_breaks_nor_lengthens_a_row_of_alarms():
    alarm, unknown, ok = (({"performance": s}, 900) for s in ("alarm", "unknown", "ok"))
    decisions, _ = run(PolicySpec(consecutive=2), [alarm, unknown, unknown, alarm])
    assert [d.action for d in decisions] == ["alert", "none", "none", "retrain"]
    decisions, _ = run(PolicySpec(consecutive=2), [alarm, ok, alarm])
    assert actions(decisions) == ["alert", "alert_end", "alert"]


def test_a_monitor_that_is_not_heard_any_more_starts_anew():
    alarm, silent = ({"performance": "alarm"}, 900), ({"drift": "ok"}, 900)
    decisions, state = run(PolicySpec(consecutive=2), [alarm, silent, alarm])
    assert actions(decisions) == ["alert", "alert_end", "alert"]
    assert state.episodes["performance"].alarms == 1 and state.episodes["performance"].told


def test_enough_new_labels_retrain_without_any_alarm():
    decisions, _ = run(
        PolicySpec(retrain_on=("labels",), new_labels=1000),
        [({"performance": "ok"}, 999), ({"performance": "ok"}, 1000)],
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


def test_any_monitor_that_is_named_may_start_a_retraining():
    """A monitor that is not named is told, in the same turn as the retraining that another one starts."""
    spec = PolicySpec.parse({"retrain_on": "drift", "consecutive": 1})
    decisions, _ = run(spec, [({"drift": "alarm", "performance": "alarm"}, 900)])
    assert actions(decisions) == ["retrain+alert"]
    assert decisions[0].reason.startswith("drift: ") and decisions[0].also[0].reason == "performance is alarm"


def test_one_lasting_alarm_starts_so_many_retrainings_of_a_version():
    spec = PolicySpec(
        consecutive=1, cooldown=0 * DAY, budget=99, episode_attempts=2, retrain_on=("performance",)
    )
    alarm, ok = ({"performance": "alarm"}, 900), ({"performance": "ok"}, 900)
    decisions, _ = run(spec, [alarm, alarm, alarm, ok, alarm])
    assert actions(decisions) == ["retrain", "retrain", "none", "alert_end", "retrain"]
    assert "has started 2 retrainings of this version" in decisions[2].reason
    # an alarm that goes on about a new version is told no second time, and counts anew
    decisions, _ = run(spec, [alarm] * 3, versions=["1", "1", "2"])
    assert actions(decisions) == ["retrain"] * 3


def test_a_lasting_alarm_tries_again_when_clearly_more_is_known():
    spec = PolicySpec(consecutive=2, cooldown=0 * DAY, budget=99, episode_attempts=9)
    decisions, _ = run(spec, [({"performance": "alarm"}, 900)] * 17)
    assert [day for day, one in enumerate(decisions) if one.action == "retrain"] == [1, 3, 5, 7, 9, 12, 15]
    assert "the next one waits until 2013-02-12 06:00" in decisions[11].reason


def test_a_change_that_a_promoted_version_answers_is_followed_until_there_is_nothing_to_gain():
    spec = PolicySpec.parse({"consecutive": 1, "cooldown": "0d", "budget": 99, "training_window": "10d"})
    alarm, ok = ({"performance": "alarm"}, 900), ({"performance": "ok"}, 900)
    versions = ["1", "1", *"2" * 18]  # the first retraining was refused, the second one promoted
    decisions, state = run(spec, [alarm, alarm, *[ok] * 18], versions=versions)
    retrained = [day for day, one in enumerate(decisions) if one.action == "retrain"]
    assert retrained == [
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        9,
        12,
    ]  # then all that is trained on is younger, and nothing was gained
    assert decisions[4].reason.startswith(
        "follow-up: clearly more is known of what changed with the alarm of "
    )
    assert state.change is None
    # nothing follows where nothing was promoted, and what follows waits like anything else
    assert [one.action for one in run(spec, [alarm, *[ok] * 8])[0]][1:] == ["alert_end", *["none"] * 7]
    _, began = run(spec, [alarm])
    for asked, action in (("performance", "retrain"), ("labels", "alert_end"), ("", "alert_end")):
        other = spec.changed({"retrain_on": asked})
        assert decide(other, began, [], 900, T0 + DAY, version="2")[0].action == action
    rare = spec.changed({"cooldown": "3d"})
    decisions, _ = run(rare, [alarm, *[ok] * 8], versions=["1", *"2" * 8])
    assert [day for day, one in enumerate(decisions) if one.action == "retrain"] == [0, 3, 6]


def test_in_quiet_hours_nothing_starts_and_nobody_is_woken():
    """Every six hours from midnight: 0, 6, 12, 18. What began and ended at night is never told."""
    spec = PolicySpec.parse({"quiet_hours": "22:00-07:00", "consecutive": 1})
    alarm, ok = ({"performance": "alarm"}, 900), ({"performance": "ok"}, 900)
    hours = timedelta(hours=6)
    decisions, _ = run(spec, [alarm, alarm, alarm], every=hours)
    assert actions(decisions) == ["none", "none", "retrain"]
    assert "(no retraining: quiet hours 22:00-07:00 UTC)" in decisions[0].reason
    assert actions(run(spec, [alarm, ok, ok], every=hours)[0]) == ["none", "none", "none"]
    quiet_end = [ok, ok, alarm, alarm, ok, ok, ok]  # it begins at noon, and ends at the next midnight
    spec = spec.changed({"retrain_on": ""})
    assert actions(run(spec, quiet_end, every=hours)[0]) == [
        *["none"] * 2,
        "alert",
        *["none"] * 3,
        "alert_end",
    ]


def test_a_paused_loop_starts_nothing_but_says_what_it_sees():
    spec = PolicySpec(consecutive=1)
    decisions, state = run(spec, [({"performance": "alarm"}, 900)] * 3, paused=(0, 1))
    assert actions(decisions) == ["alert", "none", "retrain"]
    assert "(no retraining: the loop is paused by ada)" in decisions[0].reason
    assert state.attempts == (T0 + 2 * DAY,)


def test_what_is_remembered_survives_json():
    _, state = run(PolicySpec(consecutive=1), [({"performance": "alarm"}, 900)])
    assert state.episodes["performance"].told
    assert state.alarmed_since(["drift", "performance"]) == T0 and state.alarmed_since(["drift"]) is None
    assert PolicyState.model_validate(state.model_dump(mode="json")) == state


STATUS = st.sampled_from(["ok", "warn", "alarm", "alarm", "alarm", "unknown"])
STEP = st.tuples(
    st.fixed_dictionaries({"drift": STATUS, "performance": STATUS}),
    st.integers(0, 3000),
    st.integers(0, 48),
    st.booleans(),
)
SPECS = st.builds(
    PolicySpec,
    consecutive=st.integers(1, 3),
    episode_attempts=st.integers(1, 2),
    cooldown=st.integers(0, 96).map(lambda hours: timedelta(hours=hours)),
    budget=st.integers(0, 3),
    budget_period=st.integers(1, 240).map(lambda hours: timedelta(hours=hours)),
    retrain_on=st.sets(st.sampled_from(["performance", "labels", "drift", "schedule"])).map(tuple),
    min_labels=st.integers(1, 1000),
    new_labels=st.integers(1, 3000),
    retrain_every=st.just(timedelta(days=2)),
    quiet_hours=st.sampled_from(["", "22:00-06:00"]),
)


@settings(max_examples=150, deadline=None)
@given(SPECS, st.lists(STEP, max_size=40))
def test_never_in_a_cooldown_over_budget_paused_at_night_without_labels_or_without_breaches(spec, steps):
    state, as_of, retrained = PolicyState(), T0, []
    rows = {"drift": 0, "performance": 0}
    for statuses, labels, hours, paused in steps:
        as_of += timedelta(hours=hours)
        repeated = state.decided_at is not None and as_of <= state.decided_at
        before = state
        verdicts = [verdict(m, s, as_of) for m, s in statuses.items()]
        decision, state = decide(spec, state, verdicts, labels, as_of, paused="by ada" if paused else "")
        if repeated:
            assert decision.action == "none" and state == before
            continue
        for monitor, status in statuses.items():
            if status != "unknown":
                rows[monitor] = rows[monitor] + 1 if status == "alarm" else 0
        done = [d.action for d in (decision, *decision.also) if d.action != "none"]
        assert not (done and spec.quiet_hours and (as_of.hour >= 22 or as_of.hour < 6))
        assert len(done) == len(set(done))
        if decision.action == "retrain":
            assert not paused
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
        elif "alert" in done:
            assert "alarm" in statuses.values()
