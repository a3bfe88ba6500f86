"""An adjustment between a scoring core and its log: what is answered, remembered, written down and brought back."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.either_broker import doubling_scorer
from support.prequential import new_state

from mlflow_flywheel.pipelines.adjust.journal import Journal
from mlflow_flywheel.pipelines.adjust.live import AdjustedCore, LiveAdjustment
from mlflow_flywheel.pipelines.adjust.rows import Label
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.scoring import Request, ScoredBatch

OWNER = {"name": "m", "version": "1", "adjust": "bias"}
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Worker:
    """A core that doubles `x`, with an adjustment on a journal; the labels of its world are 2x + 3."""

    def __init__(self, folder: Path, owner: dict[str, str] = OWNER, **settings: Any) -> None:
        self.log: list[ScoredBatch] = []
        self.scorer = doubling_scorer()
        self.journal = Journal(folder / "journal.jsonl", owner, **settings)
        self.live = LiveAdjustment(new_state("bias", self.scorer), self.journal)
        self.core = AdjustedCore(self.scorer, self.live, deployment="d", mode="stream", log=self)

    def append(self, batch: ScoredBatch) -> None:
        self.log.append(batch)

    def ask(self, *numbers: int) -> ScoredBatch:
        request = Request(
            features=pa.record_batch({"x": pa.array(numbers, pa.float64())}),
            prediction_ids=[f"p{number}" for number in numbers],
            client_request_ids=[f"c{number}" for number in numbers],
            request_time=NOW,
        )
        return self.core.score(request)

    def label(self, *numbers: int) -> None:
        self.live.learn([Label(f"p{number}", None, 2.0 * number + 3, 0) for number in numbers])

    def teach(self) -> None:
        for start in (0, 60, 120):
            rows = range(start, start + 60)
            self.ask(*rows)
            self.label(*rows)

    @property
    def id(self) -> str:
        return self.live.status().id


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def test_rows_say_under_which_adjustment_they_were_answered_in_log_and_table(worker: Worker) -> None:
    first = worker.ask(1, 2)
    assert first.predictions.native == [2.0, 4.0]
    assert first.adjustments == [worker.id] * 2
    worker.teach()
    scored = worker.ask(1000)
    shift = float(worker.id.rpartition(":")[2])
    assert 2 < shift < 3
    assert scored.predictions.native == [2000 + shift]
    assert worker.log[-1] is scored
    assert scored.columns()["adjustment"] == scored.rows["adjustment"].to_pylist() == [worker.id]
    assert scored.columns()["prediction"] == scored.rows["prediction"].to_pylist() == [2000 + shift]
    assert scored.take([0]).adjustments == [worker.id]


def test_a_message_that_comes_again_is_answered_as_before(worker: Worker) -> None:
    before = worker.ask(500)
    worker.teach()
    again = worker.ask(500, 501)
    assert again.predictions.native[0] == before.predictions.native[0] == 1000.0
    assert again.predictions.native[1] != 1002.0
    assert again.adjustments == [before.adjustments[0], worker.id]  # type: ignore[index]


def test_a_label_may_come_before_its_row_and_by_the_callers_own_id(worker: Worker) -> None:
    worker.live.learn([Label(None, "c7", 17.0, 0), Label("p8", None, 19.0, 0)])
    assert (worker.live.status().unknown, worker.live.status().labels) == (2, 0)
    worker.ask(7, 8, 9)
    assert (worker.live.status().unknown, worker.live.status().labels, worker.live.status().waiting) == (
        0,
        2,
        1,
    )
    assert worker.id.split(":")[2] == "2"


def test_a_row_without_a_number_is_answered_and_not_remembered(worker: Worker) -> None:
    worker.teach()
    scored = worker.core.score(
        Request(
            features=pa.record_batch({"x": pa.array([None, 1.0], pa.float64())}), prediction_ids=["n", "m"]
        )
    )
    assert np.isnan(scored.predictions.native[0])
    assert scored.predictions.native[1] > 2
    worker.live.learn([Label("n", None, 1.0, 0)])
    assert worker.live.status().unknown == 1


def test_after_a_crash_everything_is_as_it_was(worker: Worker, tmp_path: Path) -> None:
    worker.teach()
    worker.ask(300)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"labels": [["p300", null, 1')  # it died while it wrote
    again = Worker(tmp_path)
    assert again.live.status() == worker.live.status()
    assert again.ask(300, 301).predictions.native == worker.ask(300, 301).predictions.native
    third = Worker(tmp_path)  # of what was written again
    assert third.live.status() == again.live.status()


def test_another_version_or_setting_begins_anew(worker: Worker, tmp_path: Path) -> None:
    worker.teach()
    other = Worker(tmp_path, {**OWNER, "version": "2"})
    assert other.ask(5).predictions.native == [10.0]
    assert other.live.status().labels == 0
    assert other.id.split(":")[1] != worker.id.split(":")[1]


def test_a_journal_that_cannot_be_read_is_begun_anew(worker: Worker, tmp_path: Path) -> None:
    worker.teach()
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b"{nonsense}\n")
    again = Worker(tmp_path)
    assert again.live.status().labels == 0
    assert Worker(tmp_path).id == again.id


def test_a_reset_is_durable_and_rows_before_it_keep_their_answers(worker: Worker, tmp_path: Path) -> None:
    worker.teach()
    before = worker.ask(400)
    worker.live.reset()
    for each in (worker, Worker(tmp_path)):
        assert each.id.endswith(":0:off")
        scored = each.ask(400, 401)
        assert scored.predictions.native == [before.predictions.native[0], 802.0]
        assert scored.adjustments == [before.adjustments[0], worker.id]  # type: ignore[index]


def test_a_long_journal_is_written_again_and_says_the_same(tmp_path: Path) -> None:
    worker = Worker(tmp_path, least_bytes=20_000)
    file = tmp_path / "journal.jsonl"
    sizes = []
    for start in range(0, 3000, 100):
        worker.ask(*range(start, start + 100))
        worker.label(*range(start, start + 100))
        sizes.append(file.stat().st_size)
    assert max(sizes) < 300_000
    assert sizes != sorted(sizes)
    assert Worker(tmp_path).live.status() == worker.live.status()


def test_nothing_is_answered_or_learnt_that_cannot_be_written_down(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker.teach()
    before, logged = worker.live.status(), len(worker.log)
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda fd, data: 3)
        with pytest.raises(Unavailable, match=r"journal .* cannot be written: disk full; free disk space"):
            worker.ask(700)
        with pytest.raises(Unavailable):
            worker.label(1, 2)
        with pytest.raises(Unavailable):
            worker.live.reset()
    assert (worker.live.status(), len(worker.log)) == (before, logged)
    assert Worker(tmp_path).live.status() == before
