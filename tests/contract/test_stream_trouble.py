"""Trouble that passes, on both brokers: it is said, waited out with little in memory, and nothing is lost by it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.either_broker import EitherBroker, at_work, doubling_scorer
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.scoring import ScoredBatch
from mlflow_flywheel.pipelines.stream import worker as worker_module
from mlflow_flywheel.pipelines.stream.client import EventPublisher

MESSAGES = 3000
BYTES = 30_000


class Disk:
    """A log that cannot be written for a while."""

    def __init__(self) -> None:
        self.is_full = True
        self.tries = 0
        self.rows: list[str] = []

    def append(self, batch: ScoredBatch) -> None:
        self.tries += 1
        if self.is_full:
            raise Unavailable("the disk is full")
        self.rows += batch.prediction_ids


def test_a_full_disk_is_waited_out_and_the_backlog_stays_with_the_broker(
    either_broker: EitherBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = either_broker.config(tmp_path, batch_max=50)
    padding = os.urandom(BYTES // 2).hex()
    with EventPublisher(config) as publisher:
        for i in range(MESSAGES):
            publisher.publish({"x": i, "padding": padding})
    disk = Disk()

    def opened(*arguments: Any) -> Disk:
        return disk

    monkeypatch.setattr(worker_module, "open_log", opened)
    process = psutil.Process()
    before = process.memory_info().rss
    with at_work(config, doubling_scorer()) as stats:
        eventually(lambda: disk.tries >= 5)
        assert stats.now.trouble == "the disk is full"
        assert stats.now.oldest_ms is not None  # so the lag is known, and grows
        assert process.memory_info().rss - before < MESSAGES * BYTES / 3
        disk.is_full = False
        eventually(lambda: stats.now.rows == MESSAGES, 60)
        assert stats.now.trouble is None
    assert len(disk.rows) == len(set(disk.rows)) == MESSAGES
