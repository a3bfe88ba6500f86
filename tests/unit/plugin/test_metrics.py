"""What streams do, as Prometheus reads it and as series in MLflow."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from mlflow_flywheel.pipelines.adjust.status import AdjustmentStatus
from mlflow_flywheel.pipelines.errors import NotFound
from mlflow_flywheel.pipelines.stream.stats import StatsKeeper, StreamStats, read_stats, stats_file
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.metrics import metrics_of
from mlflow_flywheel.plugin.series import add_points, end_runs
from mlflow_flywheel.plugin.stream_series import StreamSeries

NAME = 'odd"name\\'


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    opened = Context.open(Home(tmp_path / "home"))
    opened.records.add_deployment(
        "late-stream",
        model_uri=f"models:/{NAME}/4",
        model_name=NAME,
        mode="stream",
        config={"mode": "stream"},
        flavor="sklearn",
        version="4",
        status="ready",
    )
    yield opened
    opened.records.close()


@pytest.fixture
def worker(context: Context) -> Iterator[StatsKeeper]:
    file = stats_file(context.home.status_file("late-stream"), 0)
    file.parent.mkdir(parents=True)
    keeper = StatsKeeper(file, every_seconds=0.01)
    yield keeper
    keeper.close()


def samples(text: str) -> dict[str, list[Any]]:
    """Return the samples by name, as Prometheus's own parser finds them."""
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def test_a_scrape_says_what_the_workers_counted(context: Context, worker: StatsKeeper) -> None:
    worker.count(messages=10, rows=7, skipped=1, feedback=3)
    worker.count_refusals(["malformed", "model", "malformed"])
    worker.answered([int(1000 * utc_now().timestamp()) - 3000] * 9)
    worker.note(oldest_ms=int(1000 * utc_now().timestamp()) - 20_000)
    worker.write()
    found = samples(metrics_of(context).decode())
    labels = {"deployment": "late-stream", "model_name": NAME}

    def only(name: str) -> float:
        (sample,) = found[f"flywheel_{name}"]
        assert sample.labels in (labels, {}), sample
        return float(sample.value)

    assert only("stream_messages_total") == 10
    assert only("stream_rows_total") == 7
    assert only("stream_skipped_messages_total") == 1
    assert only("stream_labels_total") == 3
    assert 19 < only("stream_lag_seconds") < 30
    assert (only("stream_workers"), only("spool_bytes")) == (0, 0)
    letters = {s.labels["refusal"]: s.value for s in found["flywheel_stream_dead_letters_total"]}
    assert letters == {"malformed": 2, "model": 1}
    assert found["flywheel_stream_info"][0].labels == {**labels, "model_version": "4", "model_id": ""}
    buckets = {s.labels["le"]: s.value for s in found["flywheel_stream_latency_seconds_bucket"]}
    assert (buckets["0.001"], buckets["2.048"], buckets["16.384"], buckets["+Inf"]) == (0, 0, 9, 9)
    assert only("stream_latency_seconds_count") == 9
    assert 27 <= only("stream_latency_seconds_sum") < 100


def test_what_an_adjustment_gains_is_scraped_and_a_series(context: Context, worker: StatsKeeper) -> None:
    adjustment = AdjustmentStatus(
        method="bias",
        id="bias:1f:60:+2",
        active=True,
        since=utc_now(),
        labels=60,
        unknown=0,
        unusable=0,
        waiting=5,
        rows=60,
        parameters={"shift": 2.0},
        limit=9.0,
        unit="minutes",
        loss="mean absolute error",
        judged=60,
        unadjusted_loss=4.0,
        proposed_loss=2.0,
        answered_loss=3.0,
        evidence=5.0,
    )
    worker.note(adjustment=adjustment)
    worker.write()
    found = samples(metrics_of(context).decode())
    labels = {"deployment": "late-stream", "model_name": NAME, "method": "bias"}
    for name, value in {"active": 1, "gain": 0.25, "labels": 60}.items():
        (sample,) = found[f"flywheel_stream_adjustment_{name}"]
        assert (sample.labels, sample.value) == (labels, value)
    losses = {s.labels["of"]: s.value for s in found["flywheel_stream_adjustment_loss"]}
    assert losses == {"unadjusted": 4.0, "proposed": 2.0, "answered": 3.0}
    stats = read_stats(context.home.status_file("late-stream"))
    assert stats is not None and stats.adjustment == adjustment
    said = stats.present(utc_now())
    assert (said["adjustment_gain"], said["adjustment_active"], said["adjustment_answered_loss"]) == (
        0.25,
        1,
        3,
    )


def test_a_deployment_that_has_said_nothing_yet_has_no_figures(context: Context) -> None:
    found = samples(metrics_of(context).decode())
    assert "flywheel_stream_messages_total" not in found
    assert "flywheel_stream_lag_seconds" not in found
    assert [s.value for s in found["flywheel_stream_workers"]] == [0]


def test_a_stream_that_works_has_series_and_one_point_of_rest(
    context: Context, worker: StatsKeeper, tracking_uri: str
) -> None:
    context.home.bind(tracking_uri)
    context.records.update_deployment("late-stream", model_name=f"late-{uuid.uuid4().hex[:8]}")
    client = MlflowClient(context.home.tracking_uri)
    series = StreamSeries()

    def points(name: str) -> list[float]:
        run_id = context.records.deployment("late-stream").run_id
        assert run_id is not None
        return [metric.value for metric in client.get_metric_history(run_id, name)]

    series.log(context)  # nothing was ever done
    assert context.records.deployment("late-stream").run_id is None
    worker.count(messages=100)
    worker.answered([int(1000 * utc_now().timestamp()) - 50] * 100)
    worker.note(oldest_ms=int(1000 * utc_now().timestamp()) - 9_000)
    worker.write()
    series.log(context)
    (rate,), (lag,) = points("messages_per_second"), points("lag_seconds")
    assert rate > 0
    assert 9 <= lag < 20
    assert 50 <= points("latency_p50_ms")[0] <= points("latency_p99_ms")[0] < 9_000
    file = stats_file(context.home.status_file("late-stream"), 0)
    worker.close()
    stats = read_stats(context.home.status_file("late-stream"))
    assert stats is not None
    rest = stats.model_copy(update={"oldest_ms": None, "recent_messages": 0, "updated": utc_now()})
    StreamStats.model_validate(rest.model_dump()).save(file)
    for _ in range(2):
        series.log(context)
    assert len(points("lag_seconds")) == 2
    assert points("messages_per_second")[-1] == 0.0


def test_the_run_of_a_deployment_ends_with_it(context: Context, tracking_uri: str) -> None:
    context.home.bind(tracking_uri)
    records, client = context.records, MlflowClient(tracking_uri)

    def points(model: str) -> str:
        deployment = records.update_deployment("late-stream", model_name=model)
        add_points(client, records, deployment, {"rows": 1.0}, utc_now())
        return str(records.deployment("late-stream").run_id)

    def statuses(*run_ids: str) -> list[str]:
        end_runs(context)
        return [client.get_run(run_id).info.status for run_id in run_ids]

    of_other_model, present = (points(f"late-{uuid.uuid4().hex[:8]}") for _ in range(2))
    assert statuses(of_other_model, present) == ["FINISHED", "RUNNING"]
    deployment = records.deployment("late-stream")
    records.delete_deployment("late-stream", run_status="FAILED")
    assert statuses(present) == ["FAILED"]
    with pytest.raises(NotFound):  # who writes points had looked before it was deleted
        add_points(client, records, deployment, {"rows": 2.0}, utc_now())
    ((late, status, _),) = records.ended_runs()
    client.delete_run(late)
    end_runs(context)
    assert (late != present, status, records.ended_runs()) == (True, "FINISHED", [])
