"""How often the same evidence was tried: what counts as another attempt, and what is a new start."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from mlflow_flywheel.monitors.decisions import Episode, PolicyState
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.plugin.gating import refused_before
from mlflow_flywheel.plugin.policy_memory import policy_memory
from mlflow_flywheel.plugin.record_types import ActionRecord
from mlflow_flywheel.plugin.records import Records

T0 = datetime(2024, 5, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(f"sqlite:///{tmp_path}/records.db")
    yield opened
    opened.close()


def attempt(records: Records, day: int, status: str = "refused", parent: str = "1") -> ActionRecord:
    number = records.add_action("m", "retrain", "why", {}, T0 + day * DAY, f"retrain:{day}:{status}:{parent}")
    return records.update_action(number, status, {"parent": parent})


def test_attempts_by_an_overlapping_holdout_count_and_older_ones_do_not(records: Records) -> None:
    attempt(records, 0), attempt(records, 10), attempt(records, 12)
    attempt(records, 13, "failed"), attempt(records, 13, "promoted"), attempt(records, 13, parent="0")
    present = attempt(records, 14, "running")
    attempt(records, 20)  # of a time that is not yet, when an old one is done again
    counted = [refused_before(records, PolicySpec(), present, "1", T0 + cut * DAY) for cut in (-1, 5, 11, 13)]
    assert counted == [3, 2, 1, 0]
    assert refused_before(records, PolicySpec(), present, "2", T0) == 0


@pytest.mark.parametrize(("monitor", "counted"), [("performance", 2), ("drift", 0)])
def test_attempts_in_the_alarm_that_asks_for_them_count_however_old(
    records: Records, monitor: str, counted: int
) -> None:
    state = PolicyState(episodes={monitor: Episode(began=T0 + 10 * DAY)})
    records.commit_decision("m", {}, state.model_dump(mode="json"), [], T0)
    attempt(records, 0), attempt(records, 10), attempt(records, 30)
    present = attempt(records, 60, "running")
    assert refused_before(records, PolicySpec(), present, "1", T0 + 50 * DAY) == counted


def test_a_memory_of_another_version_names_its_row_and_the_remedy() -> None:
    memory = PolicyState(attempts=(T0,)).model_dump(mode="json")
    assert policy_memory("m", memory).attempts == (T0,)
    with pytest.raises(BadInput) as refused:
        policy_memory("o'hare", {**memory, "streak": 3})
    assert 'policy of "o\'hare"' in refused.value.message and "streak: Extra inputs" in refused.value.message
    assert "DELETE FROM flywheel_policy_state WHERE model = 'o''hare'" in refused.value.message
