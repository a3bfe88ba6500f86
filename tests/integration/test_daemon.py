"""The daemon as a process: rows become visible, tasks are done, one per home, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from click.testing import CliRunner
from support.cores import NAME, SCHEMA, tiny_core, tiny_request
from support.daemons import running_daemon
from support.models import ZooModel
from support.waiting import eventually

from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.spool import SpoolLog
from mlflow_flywheel.pipelines.stream.stats import StreamStats, stats_file
from mlflow_flywheel.plugin.cli import main as flywheel
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.daemon import Daemon, is_running, read_status
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.runners.base import BROKER

ROWS = 20_000
EVER = datetime(2000, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def home(tmp_path: Path, tracking_uri: str) -> Home:
    made = Home(tmp_path / "home").create()
    made.bind(tracking_uri)
    return made


@pytest.fixture
def records(home: Home) -> Iterator[Records]:
    opened = Records(home.database_url)
    yield opened
    opened.close()


def add_batch(records: Records, model: ZooModel, folder: Path, rows: int = ROWS, **config: str) -> None:
    """Record a batch deployment over one Parquet file."""
    frame = np.random.default_rng(0).normal(size=(rows, 4))
    pq.write_table(pa.table(dict(zip("abcd", frame.T, strict=True))), folder / "input.parquet")
    keys = {"mode": "batch", "input": str(folder / "input.parquet"), **config}
    records.add_deployment(
        "nightly",
        model_uri=model.uri,
        model_name=model.ref.name,
        mode="batch",
        config=keys,
        flavor="sklearn",
        version=model.ref.version,
        model_id=model.ref.model_id,
        status="ready",
    )


def test_rows_are_in_the_table_soon_after_they_were_answered(home: Home) -> None:
    log = SpoolLog(home.spool, NAME, SCHEMA, "double")
    with running_daemon(home):
        tiny_core(log).score(tiny_request(25))
        table = InferenceTable.open(home.tables, NAME)
        eventually(lambda: table.exists and table.counts().rows == 25, what="25 rows are visible")
        eventually(lambda: (read_status(home.path) or {})["rows"] == 25)
        status = read_status(home.path)
        assert status is not None
        scraped = requests.get(status["metrics"], timeout=10)
        assert scraped.headers["Content-Type"].startswith("text/plain")
        assert "flywheel_spool_bytes" in scraped.text
        assert requests.get(status["metrics"] + "/x", timeout=10).status_code == 404
    log.close()


def test_a_table_that_is_away_is_told_and_its_rows_wait_for_it(home: Home) -> None:
    in_the_way = home.path / "tables"
    in_the_way.write_text("no folder")
    log = SpoolLog(home.spool, NAME, SCHEMA, "double")
    with running_daemon(home) as daemon:
        tiny_core(log).score(tiny_request(25))

        def told() -> str:
            status = read_status(home.path)
            assert status is not None
            return str(status["trouble"][f"table of {NAME}"]["error"])

        assert "its rows wait in the spool: [Errno" in eventually(told)
        tiny_core(log).score(tiny_request(5))  # whoever answers is none the wiser
        in_the_way.unlink()
        table = InferenceTable.open(home.tables, NAME)
        eventually(lambda: table.exists and table.counts().rows == 30, what="30 rows are visible")
        eventually(lambda: (read_status(home.path) or {})["trouble"] == {})
        assert daemon.log().count(f"commit of {NAME}") == 1
    log.close()


def test_one_daemon_per_home(home: Home) -> None:
    assert not is_running(home.path) and read_status(home.path) is None
    with running_daemon(home) as first:
        second = subprocess.run(
            [sys.executable, "-m", "mlflow_flywheel.plugin.daemon", "--home", str(home.path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert str(home.path) in second.stderr and "already" in second.stderr
        status = read_status(home.path)
        assert status is not None and status["pid"] == first.pid
    assert not is_running(home.path)


def test_it_does_tasks_says_why_one_failed_and_leaves_no_process_when_told_to_end(
    home: Home, records: Records, zoo: Callable[[str], ZooModel], tmp_path: Path
) -> None:
    add_batch(records, zoo("classifier"), tmp_path, 1000)
    with running_daemon(home) as daemon:
        missing = {"input": str(tmp_path / "nowhere.parquet")}
        failed = records.wait(records.enqueue("batch_run", "nightly", missing, "test"), 120)
        assert failed.status == "failed" and "nowhere.parquet" in (failed.error or "")
        done = records.wait(records.enqueue("batch_run", "nightly", {}, "test"), 120)
        assert done.status == "done", done.error
        assert done.result is not None and done.result["rows_out"] == 1000
        eventually(lambda: records.unreported_batch_runs() == [], 60, what="MLflow is told of both runs")
        runs = {
            run.run_id: records.task(run.task_id).status
            for run in records.batch_runs("nightly", asked_since=EVER)
        }
        assert sorted(runs.values()) == ["done", "failed"] and None not in runs
        assert len(daemon.family()) > 1  # the warm process is there
        assert daemon.terminate() == 0
        # Python's own helper of multiprocessing sees its pipe close and follows in a moment
        eventually(lambda: daemon.family() == [])
    assert not (home.path / "daemon.json").exists()


def test_a_killed_daemons_task_is_done_by_the_next_one_exactly_once(
    home: Home, records: Records, zoo: Callable[[str], ZooModel], tmp_path: Path
) -> None:
    """SIGKILL in the middle of a batch: its child goes too, and the same task goes on with the same ids."""
    model = zoo("classifier")
    add_batch(records, model, tmp_path, chunk_rows="500", commit_rows="500")
    table = InferenceTable.open(home.tables, model.ref.name)
    with running_daemon(home) as daemon:
        task = records.enqueue("batch_run", "nightly", {}, "test")
        eventually(lambda: table.exists and table.counts().rows > 1000, 120, what="the batch is under way")
        assert records.task(task).status == "running"
        daemon.kill()
    before = table.counts().rows
    assert before < ROWS
    with running_daemon(home):
        done = records.wait(task, 120)
    assert done.status == "done", done.error
    assert done.attempts == 2
    counts = table.counts()
    assert (counts.rows, counts.distinct_ids) == (ROWS, ROWS)
    answers = pq.read_table(home.batch / "nightly" / "output")
    assert len(set(answers["prediction_id"].to_pylist())) == answers.num_rows == ROWS


def test_the_embedded_brokers_disk_is_told_and_too_much_of_it_is_warned_of(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> dict[str, Any]:
        said = CliRunner().invoke(flywheel, ["status", "--json", "--home", str(home.path)])
        assert said.exit_code == 0, said.output
        disk: dict[str, Any] = json.loads(said.output)["broker_disk"]
        return disk

    store = home.broker / "data.rocksdb"
    store.mkdir(parents=True)
    (store / "0.log").write_bytes(bytes(3_000_000))
    with running_daemon(home):
        assert told() is None  # a folder without a port has never been a broker's
        (home.broker / "port").write_text("1")
        disk = eventually(told)
        assert disk == {"bytes": 3_000_001, "warning": None}
        monkeypatch.setenv("FLYWHEEL_BROKER_WARN_GB", "0.002")
        said = CliRunner().invoke(flywheel, ["status", "--home", str(home.path)]).output
        assert "takes 3 MB of disk, more than 0.002 GB" in said and str(store) in said.replace("\n", "")
        assert told()["warning"] in said
        monkeypatch.setenv("FLYWHEEL_BROKER_WARN_GB", "much")
        said = CliRunner().invoke(flywheel, ["status", "--home", str(home.path)]).output
        assert "FLYWHEEL_BROKER_WARN_GB='much' is no number of gigabytes" in said


def test_a_broker_that_holds_messages_back_is_restarted_once(home: Home) -> None:
    """The wish comes from a stream worker's statistics; any process can stand for the broker here."""
    context = Context.open(home)
    waiting = (sys.executable, "-c", "import threading; threading.Event().wait()")
    (home.broker).mkdir()
    (home.broker / "port").write_text("1")
    context.records.add_deployment(
        "orders",
        model_uri="models:/m/1",
        model_name="m",
        mode="stream",
        config={"mode": "stream"},
        flavor="sklearn",
        status="ready",
    )
    daemon = Daemon(context)
    try:
        context.runner.ensure_up()
        context.runner.start(context.process(BROKER, waiting, 5))
        (before,) = context.runner.status(BROKER)
        now = datetime.now(timezone.utc)
        stats = StreamStats(started=now, updated=now)
        file = stats_file(home.status_file("orders"), 0)
        stats.save(file)
        daemon.look_after_broker()
        assert context.runner.status(BROKER)[0].pid == before.pid
        stats.model_copy(update={"broker_restart_wanted": now + timedelta(seconds=1)}).save(file)

        def restarted() -> bool:
            daemon.look_after_broker()
            return context.runner.status(BROKER)[0].pid not in (None, before.pid)

        eventually(restarted)
    finally:
        context.runner.down()
        context.records.close()
