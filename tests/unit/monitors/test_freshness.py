"""Freshness: what is late is told with its age, what has no limit is not judged."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from support.looks import logged, look_of
from support.windows_of import WINDOW

from mlflow_flywheel.monitors.freshness import FreshnessMonitor
from mlflow_flywheel.monitors.look import Deployed, Runs
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.batch.waiting import InputState
from mlflow_flywheel.pipelines.errors import Unavailable

DAY = timedelta(days=1)
NOW = WINDOW.end
LONG_AGO = NOW - 300 * DAY


def nightly(waits: timedelta | None = None, newest: timedelta = DAY / 2, **fields: Any) -> Deployed:
    state = InputState(NOW - newest, 0 if waits is None else 3, None if waits is None else NOW - waits)

    def inputs(as_of: datetime) -> InputState:
        assert as_of == NOW
        return state

    return Deployed("web", "batch", LONG_AGO, **({"every": DAY, "inputs": inputs} | fields))


def judged(deployment: Deployed, until: datetime = NOW, others: Any = (), **policy: Any) -> Verdict | None:
    rows = logged({"x": np.zeros(50)}, Window(WINDOW.start, until))
    return FreshnessMonitor().look(look_of(rows, deployments=[deployment], others=others, **policy))


def test_without_a_limit_nothing_is_asked() -> None:
    assert judged(Deployed("web", "web", LONG_AGO)) is None
    assert judged(nightly(every=None)) is None and judged(nightly(inputs=None)) is None
    assert judged(nightly(inputs=lambda as_of: InputState(NOW))) is None, "only a run can tell what waits"


def test_an_old_newest_event_is_an_alarm_beyond_the_limit() -> None:
    web = Deployed("web", "web", LONG_AGO)
    fresh = judged(web, max_age="2d")
    assert fresh is not None and fresh.status == "ok" and fresh.metrics["event_age_hours"] < 24
    late = judged(web, until=NOW - 3 * DAY, max_age="2d")
    assert late is not None and late.status == "alarm"
    assert late.summary == "web: newest event answered is 3d 12h old (at most 2d)"
    assert (late.metrics["late"], late.evidence[0]["max_age_hours"]) == (1, 48)


def test_what_another_version_answered_is_fresh_too() -> None:
    rows = logged({"x": np.zeros(5)}, Window(NOW - DAY, NOW), model_version="2")
    verdict = judged(Deployed("web", "web", LONG_AGO), NOW - 3 * DAY, [rows], max_age="2d")
    assert verdict is not None and verdict.status == "ok"


@pytest.mark.parametrize(("made", "status"), [(LONG_AGO, "alarm"), (NOW - DAY, "unknown"), (None, "unknown")])
def test_a_deployment_without_any_event_is_late_once_it_is_old_enough(made: Any, status: str) -> None:
    verdict = judged(Deployed("other", "web", made), max_age="2d")
    assert verdict is not None and verdict.status == status
    assert "other: no event answered in 28d" in verdict.summary


def test_input_that_waits_for_longer_than_two_runs_is_an_alarm() -> None:
    on_time, late = judged(nightly(DAY)), judged(nightly(5 * DAY / 2))
    assert on_time is not None and on_time.status == "ok"
    assert late is not None and late.status == "alarm"
    assert late.summary == "web: 3 input files wait, the oldest for 2d 12h (at most 2d)"
    assert late.metrics["waiting_hours"] == 60 and late.evidence[0]["waiting_files"] == 3
    done = judged(nightly(newest=9 * DAY))
    assert (
        done is not None
        and done.status == "ok"
        and done.summary == "web: no input waits, newest input 9d old"
    )
    asked = judged(nightly(3 * DAY, every=None), max_age="40d")
    assert asked is not None and asked.status == "ok"


def test_input_that_cannot_be_looked_at_is_told_and_is_no_alarm() -> None:
    def away(as_of: datetime) -> InputState:
        raise Unavailable("the store is away\nand more")

    verdict = judged(nightly(inputs=away))
    assert verdict is not None and verdict.status == "unknown"
    assert verdict.summary == "web: its input cannot be looked at: the store is away"


@pytest.mark.parametrize(
    ("since", "every", "failure", "status"),
    [
        (DAY, DAY, None, "ok"),
        (DAY, DAY, "odd", "ok"),
        (5 * DAY / 2, DAY, None, "alarm"),
        (None, DAY, "odd\nand more", "alarm"),
        (5 * DAY, None, "odd", "alarm"),
        (5 * DAY, None, None, None),
        (-DAY, DAY, None, None),  # an old moment is looked at again
    ],
)
def test_runs_that_do_not_succeed_are_an_alarm_whatever_they_read(
    since: Any, every: Any, failure: Any, status: str | None
) -> None:
    runs = Runs(None if since is None else NOW - since, failure)
    deployment = nightly(every=every, inputs=lambda as_of: InputState(NOW - DAY), runs=runs)
    verdict = judged(deployment, max_age="3d" if every is None or status is None else "")
    assert verdict is not None
    if status is None:
        assert verdict.status == "ok" and "run" not in verdict.summary
        return
    assert verdict.status == status
    assert verdict.metrics["run_age_hours"] == ((since or 300 * DAY) / timedelta(hours=1))
    if status == "ok":
        assert verdict.summary == "web: its runs succeed, newest input 1d old"
    elif since is None:
        assert (
            "web: no run has succeeded for 300d (at most 2d); the last one failed: odd, newest"
            in verdict.summary
        )
    else:
        assert verdict.summary.startswith("web: no run has succeeded for ")
        assert verdict.evidence[0]["failure"] == failure
