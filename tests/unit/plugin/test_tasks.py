"""What the clock asks for, and how a person's request becomes an action."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from mlflow_flywheel.monitors.look import Runs
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin import tasks
from mlflow_flywheel.plugin.batch_jobs import BatchRequest
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.looking import runs_of


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    opened = Context.open(Home(tmp_path / "home"))
    yield opened
    opened.records.close()


def add(context: Context, name: str, mode: str, version: str = "1", model: str = "m", **config: str) -> None:
    context.records.add_deployment(
        name,
        model_uri=f"models:/{model}@champion",
        model_name=model,
        mode=mode,
        config={"mode": mode, **config},
        flavor="sklearn",
        version=version,
        status="ready",
    )


def test_models_are_monitored_and_batches_run_by_the_clock(context: Context) -> None:
    add(context, "web", "web")
    add(context, "stream", "stream")
    add(context, "loose", "web", version="", model="m-123")  # outside the registry: nothing to compare with
    add(context, "nightly", "batch", input="/data/*.csv", schedule="0 2 * * *", timezone="Europe/Berlin")
    add(context, "asked", "batch")
    context.records.set_policy("m", {"monitor_schedule": "30 6 * * 1"})
    jobs = {job.id: job for job in tasks.recurring_jobs(context)}
    assert set(jobs) == {"maintenance", "monitor m", "batch nightly"}
    assert jobs["monitor m"].cron == "30 6 * * 1"
    assert (jobs["batch nightly"].cron, jobs["batch nightly"].timezone) == ("0 2 * * *", "Europe/Berlin")
    for job in jobs.values():
        module, _, function = job.target.partition(":")
        assert module == tasks.__name__ and callable(getattr(tasks, function))


def test_a_minute_that_is_announced_twice_is_one_task(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2024, 5, 1, 12, 0, 30, tzinfo=timezone.utc)

    monkeypatch.setattr(tasks, "datetime", Noon)
    add(context, "nightly", "batch", input="/data/*.csv", schedule="0 2 * * *")
    home = str(context.home.path)
    for _ in range(2):
        tasks.enqueue_monitor(home, "m")
        tasks.enqueue_batch(home, "nightly")
    batch, monitor = context.records.tasks()
    assert (monitor.kind, monitor.subject, monitor.payload) == (
        "monitor",
        "m",
        {"as_of": "2024-05-01T12:00:30+00:00"},
    )
    assert (batch.kind, batch.subject, batch.requested_by) == ("batch_run", "nightly", "schedule")


def test_runs_neither_overlap_nor_pile_up(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every minute the clock asks for a run that takes longer, and a person asks for one too."""
    records, home = context.records, str(context.home.path)
    add(context, "nightly", "batch", input="/data/*.csv", schedule="* * * * *")
    minute = 0

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2024, 5, 1, 12, minute, tzinfo=timezone.utc)

    monkeypatch.setattr(tasks, "datetime", Clock)
    tasks.enqueue_batch(home, "nightly")
    running = records.claim(["batch_run"], "daemon")
    assert running is not None
    for minute in range(1, 5):  # noqa: B007 - the clock reads it
        tasks.enqueue_batch(home, "nightly")
    by_hand = records.enqueue("batch_run", "nightly", {}, "cli")
    tasks.enqueue_batch(home, "nightly")
    assert records.claim(["batch_run"], "daemon") is None
    records.finish(running.id, {})
    waiting = [task.requested_by for task in records.tasks(status="queued")]
    assert waiting == ["cli", "schedule"]
    second = records.claim(["batch_run"], "daemon")
    assert second is not None and second.id != by_hand
    assert records.claim(["batch_run"], "daemon") is None
    minute = 9
    tasks.enqueue_batch(home, "nightly")
    assert [task.requested_by for task in records.tasks(status="queued")] == ["schedule", "cli"]


def test_a_request_of_a_person_becomes_one_action(context: Context) -> None:
    records = context.records
    asked = records.task(records.enqueue("retrain", "m", {"reason": "I say so"}, "page"))
    first, again = tasks.action_of(records, asked), tasks.action_of(records, asked)
    assert first == again
    (action,) = records.actions("m")
    assert action.reason == "I say so" and action.evidence == {"requested_by": "page"}
    assert action.as_of == asked.created
    decided = records.task(records.enqueue("retrain", "m", {"action_id": 77}, "policy"))
    assert tasks.action_of(records, decided) == 77


def test_tables_of_models_that_nobody_has_asked_yet_need_no_care(context: Context) -> None:
    add(context, "web", "web")
    tasks.maintain_tables(str(context.home.path))


def test_how_the_runs_over_a_deployments_own_input_went(context: Context) -> None:
    add(context, "nightly", "batch", input="/data")
    records = context.records

    def run(request: BatchRequest, error: str | None = None) -> datetime:
        records.enqueue("batch_run", "nightly", request.payload(), "schedule")
        task = records.claim(["batch_run"], "daemon")
        assert task is not None
        records.finish(task.id, {}) if error is None else records.fail(task.id, error)
        return utc_now()

    def runs(as_of: datetime) -> Runs:
        return runs_of(records, records.deployment("nightly"), as_of)

    own, other = BatchRequest(), BatchRequest(input="/else")
    run(other), run(other, "not this one")
    before = utc_now()
    assert runs(before) == Runs(None)
    good = run(own)
    bad = run(own, "odd")
    run(other)
    assert runs(before) == Runs(None) and runs(good).failure is None
    found = runs(bad)
    assert found.failure == "odd" and found.succeeded is not None and before <= found.succeeded <= good
    run(own)
    assert runs(utc_now()).failure is None
