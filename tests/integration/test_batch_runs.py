"""Runs of batch deployments as MLflow and people see them, without a daemon: its steps are done one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from support.models import ZooModel, numeric_frame

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, Unavailable
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.plugin.batch_jobs import BatchRequest, batch_config
from mlflow_flywheel.plugin.batch_progress import RunFolder, score_run
from mlflow_flywheel.plugin.batch_reports import report_batch_runs
from mlflow_flywheel.plugin.batch_runs import runs_view
from mlflow_flywheel.plugin.cli import main as flywheel
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.modes.batch import BatchOperations
from mlflow_flywheel.plugin.prices import CPU_HOUR, Prices
from mlflow_flywheel.plugin.record_types import Task
from mlflow_flywheel.plugin.spec import BatchSpec
from mlflow_flywheel.plugin.tasks import batch_handlers, begin_run
from mlflow_flywheel.plugin.warm_process import WarmProcess

NIGHT = datetime(2024, 5, 1, tzinfo=timezone.utc)


class InThisProcess(WarmProcess):
    """Calls without a child."""

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> Any:
        return function(*arguments)


@dataclass(frozen=True)
class World:
    """A batch deployment in a home, and the MLflow store that it is told to."""

    context: Context
    client: MlflowClient
    model: ZooModel
    inbox: Path

    def ask(self, request: BatchRequest | None = None, by: str = "cli") -> int:
        payload = (request or BatchRequest()).payload()
        return self.context.records.enqueue("batch_run", "nightly", payload, by)

    def claim(self) -> Task:
        task = self.context.records.claim(["batch_run"], "daemon")
        assert task is not None
        return task

    def do(self, task: Task) -> None:
        """Do a task to its end, good or bad, as the daemon does."""
        try:
            result = batch_handlers(self.context, InThisProcess("batch"))["batch_run"](task)
        except FlywheelError as error:
            self.context.records.fail(task.id, error.message)
        else:
            self.context.records.finish(task.id, result)

    def configure(self, **changes: str) -> None:
        config = self.context.records.deployment("nightly").config
        self.context.records.update_deployment("nightly", config={**config, **changes})

    @property
    def output(self) -> Path:
        return self.context.home.batch / "nightly" / "output"

    @property
    def table(self) -> pa.Table:
        return InferenceTable.open(self.context.home.tables, self.model.ref.name).read(deployment="nightly")

    def report(self) -> None:
        report_batch_runs(self.context)

    def run_of(self, task_id: int) -> Run:
        run = self.context.records.batch_run(task_id)
        assert run is not None and run.run_id is not None
        return self.client.get_run(run.run_id)

    def view(self) -> dict[str, Any]:
        return runs_view(self.context, self.context.records.deployment("nightly"))


def rows(n: int, first: int = 0) -> pa.Table:
    frame = numeric_frame(n, first).assign(key=[f"k{first + i}" for i in range(n)])
    times = [NIGHT.timestamp() * 1e3 + (first + i) * 60_000 for i in range(n)]
    return pa.Table.from_pandas(frame.assign(at=[int(t) for t in times]), preserve_index=False)


@pytest.fixture
def world(tmp_path: Path, zoo: Callable[[str], ZooModel], tracking_uri: str) -> Iterator[World]:
    home = Home(tmp_path / "home").create()
    home.bind(tracking_uri)
    context = Context.open(home)
    model, inbox = zoo("regressor"), tmp_path / "in"
    inbox.mkdir()
    config = {
        "mode": "batch",
        "input": str(inbox),
        "id_column": "key",
        "timestamp_column": "at",
        "chunk_rows": "50",
    }
    context.records.add_deployment(
        "nightly",
        model_uri=model.uri,
        model_name=model.ref.name,
        mode="batch",
        config=config,
        flavor="sklearn",
        version=model.ref.version,
        model_id=model.ref.model_id,
        status="ready",
    )
    pq.write_table(rows(200), inbox / "a.parquet")
    yield World(context, MlflowClient(tracking_uri), model, inbox)
    told = [run.run_id for run in context.records.batch_runs("nightly", asked_since=NIGHT) if run.run_id]
    if told:  # the store is the session's: the next world has its own parent
        parent = MlflowClient(tracking_uri).get_run(told[0]).data.tags["mlflow.parentRunId"]
        MlflowClient(tracking_uri).delete_run(parent)
    context.records.close()


def test_a_run_is_nested_in_its_deployments_run_with_what_it_did(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_PRICE_CPU_HOUR", "3600")  # so that a CPU second costs 1
    task = world.ask(by="schedule")
    world.do(world.claim())
    world.report()
    run = world.run_of(task)
    tags, metrics = run.data.tags, run.data.metrics
    assert run.info.status == "FINISHED" and run.info.end_time >= run.info.start_time
    assert (metrics["rows_in"], metrics["rows_out"], metrics["rows_rejected"]) == (200, 200, 0)
    assert metrics["cost"] == pytest.approx(metrics["cpu_seconds"]) and metrics["seconds"] > 0
    assert {name: tags[f"flywheel.{name}"] for name in ("kind", "deployment", "version", "trigger")} == {
        "kind": "batch",
        "deployment": "nightly",
        "version": world.model.ref.version,
        "trigger": "schedule",
    }
    put_in, put_out = (linked.dataset for linked in run.inputs.dataset_inputs)
    assert (put_in.name, put_out.name) == ("nightly input", "nightly output")
    assert str(world.inbox) in put_in.source and '"num_rows": 200' in put_in.profile
    assert '"name": "at"' in put_in.schema and '"name": "prediction"' in put_out.schema
    assert [linked.model_id for linked in run.inputs.model_inputs] == [world.model.ref.model_id]
    parent = world.client.get_run(tags["mlflow.parentRunId"])
    assert parent.data.tags["flywheel.kind"] == "deployment" and parent.info.status == "RUNNING"
    assert world.context.records.deployment("nightly").run_id == parent.info.run_id
    (point,) = world.client.get_metric_history(parent.info.run_id, "batch/rows_out")
    assert (point.value, point.timestamp) == (200, int(NIGHT.timestamp() * 1000) + 199 * 60_000)
    assert {"batch/seconds", "batch/cost"} <= set(parent.data.metrics)
    log = Path(world.client.download_artifacts(run.info.run_id, "run.log")).read_text()
    assert "1 of 1 inputs" in log and "a.parquet: 200 rows answered" in log
    assert not list(world.context.home.batch.glob("*/runs/*")), "what MLflow has needs no place here"
    last = world.view()["last_run"]
    assert (last["rows_out"], last["trigger"], last["run_id"]) == (200, "schedule", run.info.run_id)


def test_mlflow_does_not_hear_of_a_scheduled_run_that_found_nothing_new(world: World) -> None:
    (world.inbox / "a.parquet").unlink()
    world.ask(by="schedule")
    task = world.claim()
    run, _ = begin_run(world.context, task)
    world.report()  # while nobody knows yet whether there is anything new
    world.do(task)
    world.report()
    last = world.view()["last_run"]
    assert (last["status"], last["files"], last["run_id"]) == ("done", 0, None)
    assert world.context.records.unreported_batch_runs() == []
    assert not RunFolder.of(world.context.home, "nightly", run.job_id).path.exists()
    told = CliRunner().invoke(flywheel, ["status", "--home", str(world.context.home.path)]).output
    assert re.search(r"last run .* \(schedule\): 0 rows in .*; nothing was new", told), told


def test_a_run_that_fails_says_why_also_when_it_could_not_begin(world: World) -> None:
    pq.write_table(rows(10).set_column(0, "a", pa.array(["odd"] * 10)), world.inbox / "b.parquet")
    asked = [world.ask(), world.ask(BatchRequest(start=NIGHT, end=NIGHT))]
    for _ in asked:
        world.do(world.claim())
    world.report()
    for task, reason in zip(asked, ("b.parquet.*column 'a' must be double", "span .* is empty"), strict=True):
        run = world.run_of(task)
        assert run.info.status == "FAILED"
        assert re.search(reason, run.data.tags["flywheel.failure"])
    log = Path(world.client.download_artifacts(world.run_of(asked[0]).info.run_id, "run.log")).read_text()
    assert "ERROR" in log and "column 'a' must be double" in log
    told = CliRunner().invoke(flywheel, ["status", "--home", str(world.context.home.path)]).output
    assert re.search(r"last run .* \(back-fill .*\): failed: the span .* is empty.*; MLflow run \w+", told), (
        told
    )


def test_a_run_whose_daemon_was_killed_goes_on_in_the_same_mlflow_run(world: World) -> None:
    asked = world.ask()
    task = world.claim()
    run, config = begin_run(world.context, task)
    world.report()
    (running,) = [world.view()["run"]]
    assert running["run_id"] == world.run_of(asked).info.run_id and running["trigger"] == "hand"
    folder = RunFolder.of(world.context.home, "nightly", run.job_id)
    score_run(config.model_dump(mode="json"), str(folder.path))  # and the daemon dies before it can say so
    spent = folder.read()
    assert spent is not None and (spent.rows, spent.files_done, spent.files) == (200, 1, 1)
    assert world.view()["run"]["rows"] == 200
    told = CliRunner().invoke(flywheel, ["status", "--home", str(world.context.home.path)]).output
    assert re.search(
        r"nightly: running since .* UTC \(hand\): 200 rows, 1 of 1 files, [\d,]+ rows/s", told
    ), told
    world.context.records.update_deployment("nightly", version="99")  # the alias moved meanwhile
    assert world.context.records.requeue_abandoned(lambda worker: False) == [asked]
    pq.write_table(rows(20, 500), world.inbox / "later.parquet")
    world.do(world.claim())
    world.report()
    ended = world.run_of(asked)
    assert (ended.info.run_id, ended.info.status) == (running["run_id"], "FINISHED")
    assert ended.data.metrics["rows_out"] == 200, "what came meanwhile is for the next run"
    assert ended.data.metrics["seconds"] > spent.seconds
    assert ended.data.tags["flywheel.version"] == world.model.ref.version, "a run does not mix versions"
    query = f"tags.`flywheel.job` = '{run.job_id}'"
    assert len(world.client.search_runs([ended.info.experiment_id], query)) == 1
    log = Path(world.client.download_artifacts(ended.info.run_id, "run.log")).read_text()
    assert "1 of 1 inputs" in log and "0 of 1 inputs" in log


def test_the_run_after_a_failed_one_goes_on_with_its_job(world: World) -> None:
    records = world.context.records
    world.configure(commit_rows="50")
    times = pa.array(["soon" if i == 120 else f"2024-05-01T00:{i // 3:02}:00Z" for i in range(150)])
    pq.write_table(rows(150, 500).set_column(5, "at", times), world.inbox / "b.parquet")
    for _ in range(2):  # the second goes on and fails there again
        asked = world.ask(by="schedule")
        world.do(world.claim())
        assert re.search(r"b\.parquet.*'at'.*soon", str(records.task(asked).error))
    assert 250 <= world.table.num_rows <= 300, "the commits before the row stay"
    failed = records.batch_run(asked)
    pq.write_table(rows(20, 900), world.inbox / "later.parquet")
    world.configure(commit_rows="50", on_error="skip")
    resumed = world.ask(by="schedule")
    world.do(world.claim())
    rest = world.claim()
    assert (rest.requested_by, rest.payload) == ("schedule", records.task(resumed).payload)
    world.do(rest)
    result = dict(records.task(resumed).result or {})
    assert (result["rows_out"], result["rows_rejected"], result["more_follows"]) == (349, 1, True)
    assert dict(records.task(rest.id).result or {})["rows_out"] == 20
    table = world.table
    assert len(set(table["client_request_id"].to_pylist())) == table.num_rows == 369
    answered = [row for path in world.output.rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["prediction_id"] for row in answered} == set(table["prediction_id"].to_pylist())
    world.report()
    statuses = [world.run_of(task).info.status for task in (asked, resumed, rest.id)]
    assert statuses == ["FAILED", "FINISHED", "FINISHED"], "each is an MLflow run of its own"
    assert failed is not None and world.run_of(asked).data.tags["flywheel.job"] == failed.job_id
    assert world.context.records.claim(["batch_run"], "daemon") is None, "nothing waits"


def test_a_file_that_was_mended_is_another_file(world: World) -> None:
    odd = world.inbox / "b.csv"
    odd.write_text("a,b,c,d,key,at\n1,2,3,4,k,soon\n")
    first = world.ask()
    world.do(world.claim())
    odd.write_text("a,b,c,d,key,at\n1,2,3,4,k,2024-05-01\n")
    second = world.ask()
    world.do(world.claim())
    assert world.context.records.task(first).status == "failed"
    assert dict(world.context.records.task(second).result or {})["rows_out"] == 1, "a.parquet was complete"
    world.report()


def test_runs_wait_for_an_mlflow_that_is_away_and_none_is_lost_or_told_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    at_home = world.context.tracking_uri
    first = world.ask()
    world.do(world.claim())
    world.context.home.bind("http://127.0.0.1:9", rebind=True)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        world.report()
    assert world.view()["last_run"]["rows_out"] == 200 and world.view()["last_run"]["run_id"] is None
    world.context.home.bind(at_home, rebind=True)
    monkeypatch.setattr(world.context.records, "update_batch_run", _killed)
    with pytest.raises(KeyboardInterrupt):
        world.report()
    monkeypatch.undo()
    world.report()
    run = world.run_of(first)
    assert run.info.status == "FINISHED"
    runs = world.client.search_runs(
        [run.info.experiment_id], f"tags.`flywheel.job` = '{run.data.tags['flywheel.job']}'"
    )
    assert len(runs) == 1


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_run_that_somebody_deletes_holds_no_other_back(world: World) -> None:
    tasks = [world.ask(), world.ask()]
    doing = world.claim()
    begin_run(world.context, doing)
    world.report()
    world.client.delete_run(world.run_of(tasks[0]).info.run_id)
    world.do(doing)
    world.do(world.claim())
    world.report()
    assert world.context.records.unreported_batch_runs() == []
    assert world.run_of(tasks[1]).info.status == "FINISHED"


def test_a_back_fill_is_a_run_of_its_own_that_answers_beside_the_others(world: World) -> None:
    world.ask()
    world.do(world.claim())
    span = BatchRequest(start=NIGHT, end=datetime(2024, 5, 1, 1, tzinfo=timezone.utc))
    task = world.ask(span)
    world.do(world.claim())
    world.report()
    run = world.run_of(task)
    assert run.data.tags["flywheel.trigger"] == "back-fill"
    assert run.data.tags["flywheel.span"] == "2024-05-01T00:00:00+00:00/2024-05-01T01:00:00+00:00"
    assert run.data.metrics["rows_out"] == 60
    assert {path.relative_to(world.output).parts[0] for path in world.output.rglob("*.parquet")} == {
        "a.parquet",
        f"run={run.data.tags['flywheel.job']}",
    }
    series = world.client.get_run(run.data.tags["mlflow.parentRunId"]).data.metrics
    assert (series["batch/rows_out"], series["backfill/rows_out"]) == (200, 60)


def test_what_a_back_fill_and_a_watermark_need_is_said(world: World) -> None:
    def config(spec: BatchSpec, request: BatchRequest) -> None:
        batch_config(world.context, "nightly", world.model.ref, spec, request, "job")

    span = BatchRequest(start=NIGHT)
    with pytest.raises(BadInput, match="has no timestamp_column, so a back-fill cannot tell"):
        config(BatchSpec(input="in"), span)
    with pytest.raises(BadInput, match=r"'/a\.parquet' is one file.*a back-fill needs a folder"):
        config(BatchSpec(input="in", timestamp_column="at", output="/a.parquet"), span)
    with pytest.raises(BadInput, match=r"one file.*watermark=at needs a folder"):
        spec = BatchSpec(input=str(world.inbox), watermark="at", output="/a.parquet")
        BatchOperations().check(world.context, "nightly", spec)


def test_prices_are_read_from_the_environment_and_must_be_prices() -> None:
    assert Prices.of({}).cost(3600) == CPU_HOUR
    mine = Prices.of({"FLYWHEEL_PRICE_CPU_HOUR": "1.8", "FLYWHEEL_PRICE_GB_HOUR": "0"})
    assert mine.cost(cpu_seconds=1800, gb_seconds=1e6) == pytest.approx(0.9)
    for odd in ("cheap", "-1", "inf"):
        with pytest.raises(BadInput, match=f"FLYWHEEL_PRICE_GB_HOUR='{odd}' is no price"):
            Prices.of({"FLYWHEEL_PRICE_GB_HOUR": odd})
