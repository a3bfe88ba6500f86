import itertools
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_flywheel.monitors.verdicts import Verdict, worst
from mlflow_flywheel.monitors.windows import (
    Window,
    epoch_ms,
    format_duration,
    last_window,
    parse_duration,
    tile,
)
from mlflow_flywheel.pipelines.errors import BadInput

T0 = datetime(2013, 2, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def test_last_window_ends_at_now_and_naive_moments_are_utc():
    window = last_window(datetime(2013, 2, 1), 7 * DAY)
    assert (window.start, window.end, window.length) == (T0 - 7 * DAY, T0, 7 * DAY)
    assert window.before() == Window(T0 - 14 * DAY, T0 - 7 * DAY)
    assert epoch_ms(T0) == 1359676800000
    east = timezone(timedelta(hours=5))
    assert Window(T0.astimezone(east), (T0 + DAY).astimezone(east)) == Window(T0, T0 + DAY)


def test_tiles_are_whole_and_adjacent():
    tiles = list(tile(T0, T0 + 10 * DAY + timedelta(hours=5), 3 * DAY))
    assert [t.start for t in tiles] == [T0, T0 + 3 * DAY, T0 + 6 * DAY]
    assert all(a.end == b.start for a, b in itertools.pairwise(tiles))


def test_an_empty_window_and_a_length_of_nothing_are_refused():
    with pytest.raises(BadInput, match="ends before it starts"):
        Window(T0, T0)
    with pytest.raises(BadInput, match="positive length"):
        list(tile(T0, T0 + DAY, timedelta(0)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 2592000), ("12h", 43200), ("1d 12h", 129600), ("90m", 5400), ("2W", 1209600)],
)
def test_durations_as_people_write_them(text, seconds):
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "3 days", "-3d", "1.5d", "999999999999w"])
def test_what_is_not_a_duration_is_named(text):
    with pytest.raises(BadInput, match="duration"):
        parse_duration(text)


@given(st.integers(0, 10**9))
def test_durations_round_trip(seconds):
    assert parse_duration(format_duration(timedelta(seconds=seconds))).total_seconds() == seconds


def test_a_verdict_survives_json_and_keeps_finite_metrics_only():
    verdict = Verdict(
        "drift", "warn", "one", last_window(T0, DAY), {"a": 1, "b": float("nan")}, [{"column": "x"}]
    )
    assert verdict.metrics == {"a": 1.0}
    assert Verdict.from_dict(verdict.to_dict()) == verdict


def test_the_worst_verdict_wins_and_unknown_is_not_good_news():
    of = {s: Verdict("m", s, s, last_window(T0, DAY)) for s in ("unknown", "ok", "warn", "alarm")}
    assert worst(of.values()) == "alarm"
    assert worst([of["ok"], of["warn"]]) == "warn"
    assert worst([of["unknown"], of["ok"]]) == "ok"
    assert worst([]) == worst([of["unknown"]]) == "unknown"
