"""`flywheel up` and `flywheel down` on a home with a process in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from support.waiting import eventually

from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.base import ProcessSpec
from mlflow_flywheel.plugin.runners.processes import marked_processes
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner
from mlflow_flywheel.plugin.runners.supervisor_rpc import SupervisorRpc


@pytest.fixture
def home(unbound_home: Home) -> Home:
    return unbound_home


def run(home: Home, *arguments: str) -> Result:
    """Run a command as a shell would: no test of this file tells MLflow anything in this process."""
    return CliRunner().invoke(main, [*arguments, "--home", str(home.path)])


def flywheel(home: Home, *arguments: str) -> Any:
    said = run(home, *arguments, "--json")
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)


def tracking_uri_of(process: str, home: Home) -> str | None:
    """Return the server that a kept process was told, once it runs."""
    (status,) = SupervisorRunner(home).status(process)
    return psutil.Process(status.pid).environ().get("MLFLOW_TRACKING_URI") if status.pid else None


def test_what_was_kept_comes_back_and_the_home_may_move_to_another_server(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = f"sqlite:///{tmp_path}/first.db", f"sqlite:///{tmp_path}/second.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///first.db")  # relative to this folder
    assert flywheel(home, "up")["tracking_uri"] == first
    eventually(lambda: tracking_uri_of("daemon", home) == first)
    sleeper = (sys.executable, "-c", "import signal; signal.pause()")
    runner = SupervisorRunner(home)
    runner.start(ProcessSpec("sleeper", sleeper, home.log_file("sleeper"), stop_seconds=2))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", second)
    refused = run(home, "up")
    assert refused.exit_code == 1 and isinstance(refused.exception, SystemExit)
    assert f"{first!r}" in refused.stderr and f"flywheel up --tracking-uri {second}" in refused.stderr
    assert flywheel(home, "up", "--tracking-uri", second)["tracking_uri"] == second
    eventually(lambda: tracking_uri_of("daemon", home) == second, what="the daemon was told")

    assert set(flywheel(home, "down")["stopped"]) == {"daemon", "sleeper"}
    assert marked_processes(home.path) == []
    assert {p["state"] for p in flywheel(home, "status")["processes"]} == {"stopped"}
    flywheel(home, "up")
    eventually(lambda: all(s.alive for s in runner.status()) and len(runner.status()) == 2)


def test_up_tries_again_what_was_given_up(home: Home, tmp_path: Path) -> None:
    home.bind(f"sqlite:///{tmp_path}/mlflow.db")
    runner = SupervisorRunner(home)
    code = "import signal; signal.pause()"
    runner.start(
        ProcessSpec("sleeper", (sys.executable, "-c", code), home.log_file("sleeper"), stop_seconds=2)
    )
    SupervisorRpc(home.socket, home.path).call("stopProcess", "sleeper", True)
    assert not runner.status("sleeper")[0].alive
    flywheel(home, "up")
    eventually(lambda: runner.status("sleeper")[0].alive)
