"""Recurring jobs: they survive the process, follow their wishes, and a missed run happens once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from support.waiting import eventually

from mlflow_flywheel.monitors.schedule import Job, Schedule, cron_trigger, longest_gap
from mlflow_flywheel.pipelines.errors import BadInput


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/flywheel.db"


@pytest.fixture
def schedule(url: str) -> Iterator[Schedule]:
    made = Schedule(url)
    made.start()
    yield made
    made.stop()


def job(job_id: str, cron: str = "0 3 * * *", target: str = "os:getenv", **more: str) -> Job:
    return Job(job_id, cron, target, (job_id,), **more)


def test_jobs_are_added_changed_and_removed(schedule: Schedule) -> None:
    schedule.sync([job("a"), job("b")])
    before = schedule.next_times()
    assert set(before) == {"a", "b"} and before["a"].astimezone(timezone.utc).hour == 3
    schedule.sync([job("b", "30 4 * * *"), job("c")])
    after = schedule.next_times()
    assert set(after) == {"b", "c"}
    assert after["b"].astimezone(timezone.utc).strftime("%H:%M") == "04:30"


def test_a_time_zone_is_kept(schedule: Schedule) -> None:
    schedule.sync([job("a", timezone="Asia/Tokyo")])
    assert schedule.next_times()["a"].astimezone(ZoneInfo("Asia/Tokyo")).hour == 3


def test_a_bad_line_names_itself_and_stops_no_other(schedule: Schedule) -> None:
    with pytest.raises(BadInput, match="61 3"):
        schedule.sync([job("bad", "61 3 * * *"), job("good")])
    assert set(schedule.next_times()) == {"good"}
    with pytest.raises(BadInput, match="Mars/Base"):
        cron_trigger("0 3 * * *", "Mars/Base")


def test_runs_missed_while_nothing_ran_happen_once(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The work here is to make a folder: a second run would fail, and be logged."""
    folder = tmp_path / "made"
    hourly = Job("missed", "0 * * * *", "os:mkdir", (str(folder),))
    first = Schedule(url)
    first._scheduler.start(paused=True)  # it keeps, but runs nothing: as good as a machine that is off
    first.sync([hourly])
    first._scheduler.modify_job("missed", next_run_time=datetime.now(timezone.utc) - timedelta(hours=5))
    again = Schedule(url)
    again.start()
    try:
        again.sync([hourly])
        eventually(folder.exists)
        eventually(lambda: again.next_times()["missed"] > datetime.now(timezone.utc))
    finally:
        again.stop()
        first.stop()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("weekdays", "names"),
    [
        ("1", {"Monday"}),
        ("0", {"Sunday"}),
        ("7", {"Sunday"}),
        ("1-5", {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday"}),
        ("0-6/3", {"Sunday", "Wednesday", "Saturday"}),
        ("6,mon", {"Saturday", "Monday"}),
    ],
)
def test_weekdays_are_counted_as_cron_counts_them(weekdays: str, names: set[str]) -> None:
    trigger = cron_trigger(f"0 2 * * {weekdays}")
    moment = datetime(2026, 11, 24, tzinfo=timezone.utc)
    fired: set[str] = set()
    for _ in range(8):
        moment = trigger.get_next_fire_time(None, moment + timedelta(seconds=1))
        fired.add(f"{moment:%A}")
    assert fired == names


@pytest.mark.parametrize(
    ("cron", "gap"),
    [
        ("*/15 * * * *", timedelta(minutes=15)),
        ("0 2 * * *", timedelta(days=1)),
        ("0 2 * * 1-5", timedelta(days=3)),
        ("0 8,20 * * *", timedelta(hours=12)),
        ("0 0 1 * *", timedelta(days=31)),
    ],
)
def test_the_longest_time_between_two_runs(cron: str, gap: timedelta) -> None:
    assert longest_gap(cron, "UTC", datetime(2026, 11, 24, 12, tzinfo=timezone.utc)) == gap
