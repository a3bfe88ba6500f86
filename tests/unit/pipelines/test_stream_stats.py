"""What workers say about themselves in files, and what a killed worker's mark leads to."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.waiting import eventually

from mlflow_flywheel.pipelines.stream.endings import Mark, collect_unclean_endings
from mlflow_flywheel.pipelines.stream.latency import counted, quantile_ms
from mlflow_flywheel.pipelines.stream.stats import (
    StatsKeeper,
    StreamStats,
    needs_broker_restart,
    read_stats,
    stats_file,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOLD = "import sys; from mlflow_flywheel.pipelines.stream.endings import Mark; m = Mark(sys.argv[1]); print(flush=True)"


@pytest.fixture
def status(tmp_path: Path) -> Path:
    return tmp_path / "dep.status.json"


def test_counters_go_on_over_restarts_and_are_summed_over_workers(status: Path) -> None:
    for _ in range(2):
        keeper = StatsKeeper(stats_file(status, 0))
        keeper.count(messages=10, rows=9)
        keeper.count_refusals(["malformed"])
        keeper.close()
    other = StatsKeeper(stats_file(status, 1))
    other.count(messages=5, rows=5)
    other.count_refusals(["model", "malformed"])
    other.close()
    stats = read_stats(status)
    assert stats is not None
    assert (stats.messages, stats.rows, stats.dead_letters) == (25, 23, 4)
    assert stats.dead_letters_by == {"malformed": 3, "model": 1}


def test_lag_is_the_age_of_the_oldest_message_in_hand_and_nothing_when_idle(status: Path) -> None:
    keepers = [StatsKeeper(stats_file(status, worker)) for worker in range(2)]
    now = datetime.now(timezone.utc)

    def lag(at: datetime = now) -> float | None:
        for keeper in keepers:
            keeper.write()
        stats = read_stats(status)
        assert stats is not None
        return stats.lag_seconds(at)

    assert lag() == 0.0
    for keeper, seconds in zip(keepers, (30, 90), strict=True):
        keeper.note(oldest_ms=round(1000 * (now.timestamp() - seconds)))
    assert lag() == pytest.approx(90, abs=0.01)
    keepers[1].note(oldest_ms=None)
    assert lag() == pytest.approx(30, abs=0.01)
    keepers[0].note(oldest_ms=None, trouble="the broker is away")
    assert lag() is None  # nobody can know what waits there
    keepers[0].note(trouble=None)
    assert lag() == 0.0
    assert lag(now + timedelta(minutes=1)) is None  # nobody has written for a minute: nobody works
    for keeper in keepers:
        keeper.close()


def test_rate_and_latency_are_about_the_last_seconds_of_all_workers(status: Path) -> None:
    keepers = [StatsKeeper(stats_file(status, worker), every_seconds=0.01) for worker in range(2)]
    published = 1000 * time.time() - 100
    for keeper, n in zip(keepers, (98, 2), strict=True):
        keeper.count(messages=n)
        keeper.answered([published - 10_000 * (n == 2)] * n)

    def both() -> StreamStats:
        stats = read_stats(status)
        assert stats is not None
        assert stats.recent_messages == 100, stats
        return stats

    stats, now = eventually(both), datetime.now(timezone.utc)
    assert stats.messages_per_second(now) > 0
    assert 100 <= (stats.latency_ms(0.5, now) or 0) < 9_000
    assert 10_000 <= (stats.latency_ms(0.99, now) or 0) < 20_000
    later = now + timedelta(minutes=1)
    assert (stats.messages_per_second(later), stats.latency_ms(0.5, later)) == (0.0, None)
    for keeper in keepers:
        keeper.close()


@given(st.lists(st.floats(-10, 4e6), min_size=1), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_a_quantile_is_at_most_a_bucket_above_the_true_one(values: list[float], share: float) -> None:
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    found = quantile_ms(counted(values), share)
    assert found is not None
    assert true - 0.1 <= found <= max(1.0, true * 1.2) + 0.1


def test_news_are_written_without_being_asked(status: Path) -> None:
    keeper = StatsKeeper(stats_file(status, 0), every_seconds=0.01)
    keeper.note(trouble="the broker is away")
    eventually(lambda: (read_stats(status) or keeper.now).trouble == "the broker is away")
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
