"""Answers and failures: counted once, by version, from what web and stream workers and batch runs say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from mlflow_flywheel.monitors.failures import Tally
from mlflow_flywheel.pipelines.stream.stats import StatsKeeper, stats_file
from mlflow_flywheel.pipelines.times import EPOCH, utc_now
from mlflow_flywheel.pipelines.web.metrics import metrics_folder
from mlflow_flywheel.plugin.answer_counting import AnswerMeter, count_failed_run, count_run
from mlflow_flywheel.plugin.answer_records import Counter, Server
from mlflow_flywheel.plugin.answer_series import tell_answers
from mlflow_flywheel.plugin.batch_progress import RunFolder, RunProgress
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.metrics import metrics_of
from mlflow_flywheel.plugin.record_types import BatchRun
from mlflow_flywheel.plugin.usage_records import SLOT, slot_of

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
LATER = timedelta(days=1)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    opened = Context.open(Home(tmp_path / "home"))
    for mode in ("web", "stream", "batch"):
        opened.records.add_deployment(
            f"late-{mode}",
            model_uri="models:/late@champion",
            model_name="late",
            mode=mode,
            config={"mode": mode},
            flavor="sklearn",
            version="1",
            status="ready",
        )
    opened.home.status_file("late-web").parent.mkdir(parents=True, exist_ok=True)
    yield opened
    opened.records.close()


def tallies(context: Context, version: str) -> dict[str, Tally]:
    return context.records.answers("late", version, EPOCH, utc_now() + LATER)


def web_counts(context: Context, **statuses: dict[int, int]) -> None:
    """Count requests by version and status as a web worker does, in a file of its own."""
    folder = metrics_folder(str(context.home.status_file("late-web")))
    folder.mkdir(exist_ok=True)
    counts = MmapedDict(str(folder / "counter_7.db"))
    name, names = "flywheel_web_requests_total", ["deployment", "model_name", "model_version", "status"]
    for version, by_status in statuses.items():
        for status, n in by_status.items():
            labels = ["late-web", "late", version.strip("v"), str(status)]
            counts.write_value(
                mmap_key(name.removesuffix("_total"), name, names, labels, "help"), float(n), 0.0
            )
    counts.close()


def test_what_is_new_is_counted_once_and_a_counter_may_begin_anew(context: Context) -> None:
    records, server = context.records, Server("late-web", NOON, "late", "1")
    first = Counter("a", "100", server, 10, 1)
    for counter, at in (
        (first, NOON),
        (first, NOON),  # read again, or by a second daemon
        (replace(first, answered=15, failed=1), NOON + SLOT),
        (replace(first, incarnation="200", answered=3, failed=2), NOON + 2 * SLOT),
        (replace(first, incarnation="200", answered=1, failed=0), NOON + 3 * SLOT),  # it lost its memory
    ):
        records.add_answers([counter], at)
    assert records.answers("late", "1", NOON, NOON + LATER) == {"late-web": Tally(19, 3, 2)}
    assert records.answers("late", "1", NOON + 2 * SLOT, NOON + LATER) == {"late-web": Tally(4, 2, 1)}
    assert records.answers("late", "1", NOON + 2.5 * SLOT, NOON + LATER) == {"late-web": Tally(4, 2, 1)}
    assert records.answers("late", "2", NOON, NOON + LATER) == {}
    assert records.answers_in("late-web", NOON, NOON, NOON + SLOT) == Tally(10, 1)
    assert records.answers_of("late-web", NOON) == {"1": Tally(19, 3)}
    records.forget_old_answers(NOON + timedelta(days=400) + SLOT)
    assert records.answers("late", "1", NOON, NOON + SLOT) == {}
    assert records.answers_of("late-web", NOON) == {"1": Tally(19, 3)}, "what is counted never shrinks"
    records.forget_old_answers(NOON + timedelta(days=401))
    assert records.answers_of("late-web", NOON) == {}


def test_web_workers_failures_are_the_models_alone(context: Context) -> None:
    meter = AnswerMeter(context)
    meter.read()
    assert tallies(context, "1") == {}
    web_counts(context, v1={200: 90, 400: 5, 422: 1, 429: 7, 500: 2, 503: 9, 504: 1}, v2={200: 4})
    for _ in range(2):
        meter.read()
    assert tallies(context, "1") == {"late-web": Tally(90, 3, 1)}
    web_counts(context, v1={200: 95, 500: 2}, v2={200: 4, 500: 6})
    meter.read()
    assert tallies(context, "1")["late-web"].asked == 98
    assert tallies(context, "2") == {"late-web": Tally(4, 6, 1)}


def test_a_stream_workers_counts_belong_to_the_version_that_it_serves(context: Context) -> None:
    meter, file = AnswerMeter(context), stats_file(context.home.status_file("late-stream"), 0)
    for version, rows, letters in (
        ("1", 50, ["model", "malformed"]),
        ("1", 10, []),
        ("2", 5, ["answer", "model"]),
    ):
        worker = StatsKeeper(file)
        worker.serves(version)
        worker.count(rows=rows)
        worker.count_refusals(letters)
        worker.close()
        meter.read()
    assert tallies(context, "1") == {"late-stream": Tally(60, 1, 1)}
    assert tallies(context, "2") == {"late-stream": Tally(5, 2, 1)}


def test_a_batch_run_that_its_model_made_fail_counts_as_many_rows_as_usual(context: Context) -> None:
    records = context.records

    def run(version: str) -> BatchRun:
        task = records.enqueue("batch_run", "late-batch", {}, "schedule")
        return BatchRun(task, "late-batch", "late", version, None, f"job-{task}", "schedule", None)

    good = run("1")
    for _ in range(2):
        count_run(context, good, {"rows_out": 400, "rows_rejected": 9, "rows_failed": 3})
    assert tallies(context, "1") == {"late-batch": Tally(400, 3, 1)}
    assert records.claim(["batch_run"], "test") is not None
    records.finish(good.task_id, {"rows_out": 400})
    for version, blamed in (("2", True), ("3", False)):
        bad = run(version)
        RunFolder.of(context.home, bad.deployment, bad.job_id).save(RunProgress(model_failed=blamed))
        count_failed_run(context, bad)
    assert tallies(context, "2") == {"late-batch": Tally(0, 400, 1)}
    assert tallies(context, "3") == {}
    count_run(context, replace(good, deployment="deleted"), {"rows_out": 1})


def test_failures_are_scraped_and_a_series_of_the_deployments_run(
    context: Context, tracking_uri: str
) -> None:
    context.home.bind(tracking_uri)
    deployment = context.records.deployment("late-web")
    server = Server("late-web", deployment.created, "late", "1")
    context.records.add_answers([Counter("a", "", server, 30, 10)], utc_now())
    families = text_string_to_metric_families(metrics_of(context).decode())
    found: dict[str, Any] = {s.name: s for family in families for s in family.samples}
    assert found["flywheel_answers_total"].value == 30 and found["flywheel_failed_answers_total"].value == 10
    labels = {"deployment": "late-web", "mode": "web", "model_name": "late", "model_version": "1"}
    assert found["flywheel_failed_answers_total"].labels == labels
    tell_answers(context, slot_of(utc_now()) + SLOT)
    run = MlflowClient(tracking_uri).get_run(str(context.records.deployment("late-web").run_id))
    assert run.data.metrics["error_rate"] == 0.25
    assert context.records.deployment("late-batch").run_id is None, "nobody asked it anything"
