"""What workers say about themselves in files, and what a killed worker's mark leads to."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from support.waiting import eventually

from mlflow_flywheel.pipelines.stream.endings import Mark, collect_unclean_endings
from mlflow_flywheel.pipelines.stream.stats import StatsKeeper, needs_broker_restart, read_stats, stats_file

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOLD = "import sys; from mlflow_flywheel.pipelines.stream.endings import Mark; m = Mark(sys.argv[1]); print(flush=True)"


@pytest.fixture
def status(tmp_path: Path) -> Path:
    return tmp_path / "dep.status.json"


def test_counters_go_on_over_restarts_and_are_summed_over_workers(status: Path) -> None:
    for _ in range(2):
        keeper = StatsKeeper(stats_file(status, 0))
        keeper.count(messages=10, rows=9, dead_letters=1)
        keeper.close()
    other = StatsKeeper(stats_file(status, 1))
    other.count(messages=5, rows=5)
    other.note(lag_ms=12.0)
    other.close()
    stats = read_stats(status)
    assert stats is not None
    assert (stats.messages, stats.rows, stats.dead_letters) == (25, 23, 2)
    assert stats.lag_ms == 12.0


def test_news_are_written_without_being_asked(status: Path) -> None:
    keeper = StatsKeeper(stats_file(status, 0), every_seconds=0.01)
    keeper.note(trouble="the broker is away")
    eventually(lambda: (read_stats(status) or keeper.now).trouble == "the broker is away", 5)
    keeper.close()


def test_no_statistics_are_none_and_garbage_counts_as_none(status: Path) -> None:
    assert read_stats(status) is None
    stats_file(status, 0).write_text("{")
    assert read_stats(status) is None


def test_a_broker_restart_is_wanted_until_the_broker_is_younger_than_the_wish(status: Path) -> None:
    assert not needs_broker_restart([status], NOW)
    keeper = StatsKeeper(stats_file(status, 0))
    keeper.note(broker_restart_wanted=NOW)
    keeper.close()
    assert needs_broker_restart([status.with_name("other.status.json"), status], NOW - timedelta(seconds=1))
    assert not needs_broker_restart([status], NOW + timedelta(seconds=1))


def test_a_living_workers_mark_is_left_alone_and_a_clean_ending_leaves_none(status: Path) -> None:
    mark = Mark(status)
    # the lock is this process's own, but another file description: as if another process looked
    assert collect_unclean_endings(status) == 0
    mark.remove()
    assert collect_unclean_endings(status) == 0
    assert list(status.parent.iterdir()) == []


def test_a_killed_workers_mark_is_found_once(status: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD}; input()", str(status)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    assert collect_unclean_endings(status) == 0
    worker.kill()
    worker.wait()
    assert collect_unclean_endings(status) == 1
    assert collect_unclean_endings(status) == 0


def test_marks_of_deployments_whose_names_begin_alike_are_not_mixed_up(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path / "dep-2.status.json")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert collect_unclean_endings(tmp_path / "dep.status.json") == 0
    assert collect_unclean_endings(tmp_path / "dep-2.status.json") == 1
