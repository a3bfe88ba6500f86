"""A retraining that is cut: by its time limit, or by SIGKILL of the daemon in the middle of it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from support.daemons import running_daemon
from support.loops import LoopWorld, day
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.project_run import Launch, run_project
from mlflow_flywheel.plugin.release import GATE_TAG
from mlflow_flywheel.plugin.runners.processes import wait_gone

SLEEPER = """
name: sleeper
entry_points:
  main:
    command: "echo I am about to sleep; python -c 'import threading; threading.Event().wait()'"
"""


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"timeout": 1.0}, "after 1 s"),
        ({"timeout": 100.0, "memory_bytes": 1e6}, "GB of memory, more than 0.001 GB"),
    ],
)
def test_a_project_that_takes_too_much_is_ended_and_its_run_is_killed(
    tmp_path: Path, tracking_uri: str, bounds: dict[str, float], said: str
) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    client = MlflowClient(tracking_uri)
    (tmp_path / "MLproject").write_text(SLEEPER)
    run = client.create_run("0")
    outcome = run_project(
        lambda: Launch(str(tmp_path)),
        run_id=run.info.run_id,
        experiment_id="0",
        environment={"MLFLOW_TRACKING_URI": tracking_uri},
        log_file=tmp_path / "project.log",
        **bounds,
    )
    assert outcome.status == "KILLED" and said in outcome.reason
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    assert not [
        p for p in psutil.Process().children(recursive=True) if "threading.Event" in " ".join(p.cmdline())
    ]


def test_what_a_project_left_running_goes_with_it_and_one_that_cannot_be_fetched_says_why(
    tmp_path: Path, tracking_uri: str
) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    client = MlflowClient(tracking_uri)
    left = "setsid sleep 1000 > /dev/null 2>&1 & echo $! > sleeper"
    (tmp_path / "MLproject").write_text(json.dumps({"entry_points": {"main": {"command": left}}}))

    def nowhere() -> Launch:
        raise BadInput("there is no such project")

    outcomes = [
        run_project(
            prepare,
            run_id=client.create_run("0").info.run_id,
            experiment_id="0",
            environment={"MLFLOW_TRACKING_URI": tracking_uri},
            log_file=tmp_path / "project.log",
            timeout=100.0,
        )
        for prepare in (lambda: Launch(str(tmp_path)), nowhere)
    ]
    assert [outcome.status for outcome in outcomes] == ["FINISHED", "FAILED"]
    assert outcomes[1].reason == "there is no such project"
    assert wait_gone([int((tmp_path / "sleeper").read_text())], 0) == []


def test_a_retraining_whose_daemon_was_killed_is_done_by_the_next_one_once(
    tmp_path: Path, tracking_uri: str
) -> None:
    """There is nothing new to learn in this world, so the gate refuses what comes out of it."""
    home = Home(tmp_path / "home").create()
    home.bind(tracking_uri)
    world = LoopWorld(home, f"shop-{uuid.uuid4().hex[:8]}")
    world.register_classifier()
    world.serve(range(30), 30)
    payload = {"reason": "a test", "as_of": day(30).isoformat()}
    client = MlflowClient(tracking_uri)
    with running_daemon(home) as daemon:
        task = world.records.enqueue("retrain", world.name, payload, "test")

        def under_way() -> str | None:
            actions = world.records.actions(world.name)
            return actions[0].run_id if actions else None

        first = eventually(under_way, 90, what="the retraining has its run")
        daemon.kill()
    assert client.get_run(first).info.status == "RUNNING"
    with running_daemon(home) as daemon:
        done = world.records.wait(task, 120)
        assert done.status == "done", f"{done.error}\n{daemon.log()}"
    assert done.result is not None and done.result["status"] == "refused", done.result
    assert client.get_run(first).info.status == "KILLED"
    (action,) = world.records.actions(world.name)
    assert action.status == "refused" and action.run_id == done.result["run_id"] != first
    assert len(client.search_model_versions(f"name='{world.name}'")) == 2
    assert '"promote": false' in client.get_model_version(world.name, "2").tags[GATE_TAG]
    assert str(client.get_model_version_by_alias(world.name, "champion").version) == "1"
    assert list((home.path / "retraining").iterdir()) == []
    world.close()
