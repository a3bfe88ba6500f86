"""Where a deployment starts on its topic, and spans of it scored again, on both brokers."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from support.apache_pulsar import ApachePulsar
from support.either_broker import EitherBroker, at_work, doubling_scorer
from support.waiting import eventually

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.stream import backfill as backfill_module
from mlflow_flywheel.pipelines.stream.backfill import Backfilled, Span, backfill
from mlflow_flywheel.pipelines.stream.client import EventPublisher, OutputReader, begin_at_start_time


def publish(config: StreamConfig, *values: Any) -> None:
    with EventPublisher(config) as publisher:
        for value in values:
            publisher.publish({"x": value}, client_request_id=f"r{value}")


def now() -> datetime:
    """Return a time that nothing published before or after shares."""
    time.sleep(0.01)
    moment = datetime.now(timezone.utc)
    time.sleep(0.01)
    return moment


def in_table(config: StreamConfig, folder: Path) -> list[float]:
    Committer(config.spool, str(folder / "tables")).commit_once()
    return sorted(table_of(folder).read(deployment=config.deployment)["prediction"].to_pylist())


def table_of(folder: Path) -> InferenceTable:
    return InferenceTable.open(str(folder / "tables"), "m")


def test_a_newcomer_starts_at_its_time_and_what_came_before_is_done_with(
    either_broker: EitherBroker, tmp_path: Path
) -> None:
    config = either_broker.config(tmp_path)
    publish(config, *range(20))
    config = config.model_copy(update={"start_position": now()})
    publish(config, *range(20, 25))
    begin_at_start_time(config)
    with OutputReader(config) as answers, at_work(config, doubling_scorer()) as stats:
        assert [a["client_request_id"] for a in answers.collect(5, 20)] == [f"r{i}" for i in range(20, 25)]
        eventually(lambda: stats.now.rows == 5)
        if either_broker.embedded:  # it knows no way to a time, so the worker reads its way there
            assert (stats.now.messages, stats.now.skipped) == (25, 20)
    with at_work(config, doubling_scorer()) as stats:  # nothing comes again
        publish(config, 25)
        eventually(lambda: stats.now.rows == 6)
    assert in_table(config, tmp_path) == [40.0, 42.0, 44.0, 46.0, 48.0, 50.0]


def test_the_start_time_holds_without_being_begun_at(either_broker: EitherBroker, tmp_path: Path) -> None:
    config = either_broker.config(tmp_path)
    publish(config, 1, 2)
    config = config.model_copy(update={"start_position": now()})
    publish(config, 3)
    with at_work(config, doubling_scorer()) as stats:
        eventually(lambda: (stats.now.rows, stats.now.skipped) == (1, 2))


def test_a_span_fills_gaps_and_doubles_nothing(
    either_broker: EitherBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_module, "_QUIET_SECONDS", 0.8)  # a broker on this machine is quick
    config = either_broker.config(tmp_path, start_position="latest")
    publish(config, 0, 1)
    first = now()
    publish(config, *range(2, 10), "poison")
    second = now()
    with at_work(config, doubling_scorer()) as stats:
        publish(config, 10, 11)
        eventually(lambda: stats.now.rows == 2)
    third = now()
    publish(config, 12)
    assert in_table(config, tmp_path) == [20.0, 22.0]

    def fill(start: datetime, end: datetime) -> Backfilled:
        with OutputReader(config) as answers:
            done = backfill(config, doubling_scorer(), str(tmp_path / "tables"), Span.of(start, end))
            heard = answers.collect(done.answered + 1, 0.3)
        assert len(heard) == done.answered
        return done

    assert fill(first, second) == Backfilled(9, 8, 0, 1, {"wrong_type": 1})
    assert in_table(config, tmp_path) == [2.0 * i for i in range(2, 12)]
    assert fill(first, third) == Backfilled(11, 0, 10, 1, {"wrong_type": 1})
    assert in_table(config, tmp_path) == [2.0 * i for i in range(2, 12)]
    assert fill(first - timedelta(hours=1), third + timedelta(hours=1)).answered == 3
    assert in_table(config, tmp_path) == [2.0 * i for i in range(13)]
    assert table_of(tmp_path).counts().duplicates == 0


def test_an_empty_span_is_refused() -> None:
    moment = now()
    with pytest.raises(BadInput, match="is empty; give an earlier start"):
        Span.of(moment, moment)


@pytest.mark.apache
def test_a_start_time_and_a_span_are_about_all_partitions(
    apache_pulsar: ApachePulsar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_module, "_QUIET_SECONDS", 0.8)
    config = EitherBroker(apache_pulsar).config(tmp_path)
    apache_pulsar.admin("PUT", f"persistent/public/default/{config.input_topic}/partitions", 3)
    publish(config, *range(30))
    config = config.model_copy(update={"start_position": now()})
    publish(config, *range(30, 60))
    begin_at_start_time(config)
    with at_work(config, doubling_scorer()) as stats:
        eventually(lambda: stats.now.rows == 30)
        assert stats.now.skipped == 0  # the subscription began there
    assert in_table(config, tmp_path) == [2.0 * i for i in range(30, 60)]
    span = Span.of(now() - timedelta(hours=1), now())
    done = backfill(config, doubling_scorer(), str(tmp_path / "tables"), span)
    assert (done.answered, done.known) == (30, 30)
    assert in_table(config, tmp_path) == [2.0 * i for i in range(60)]
