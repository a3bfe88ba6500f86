"""supervisord itself: found after a crash, private, and only one of it."""

from __future__ import annotations

import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.base import ProcessSpec
from mlflow_flywheel.plugin.runners.processes import HOME_MARK, environment_of, marked_processes, wait_gone
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner

# Its child ignores SIGTERM and leaves its group: only the mark finds it.
STUBBORN = """
import subprocess, sys, signal
subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"],
                 start_new_session=True)
signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def runner(home: Home) -> Iterator[SupervisorRunner]:
    runner = SupervisorRunner(home)
    yield runner
    runner.down()


def spec(home: Home, name: str = "p", code: str = "import signal; signal.pause()") -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-c", code), home.log_file(name), stop_seconds=3)


def supervisord(home: Home) -> psutil.Process:
    return psutil.Process(int((home.supervisor / "supervisord.pid").read_text()))


def count_supervisords(home: Home) -> int:
    """Count them; a program that it has just forked still shows its command line for a moment."""
    return sum("supervisor.supervisord" in process.cmdline() for process in marked_processes(home.path))


def test_a_killed_supervisord_leaves_orphans_that_the_next_up_replaces(
    home: Home, runner: SupervisorRunner
) -> None:
    runner.start(spec(home))
    pid = eventually(lambda: runner.status("p")[0].pid)
    supervisord(home).kill()
    eventually(lambda: not runner.running())
    assert psutil.pid_exists(int(pid or 0)), "the orphan goes on"
    runner.ensure_up()
    assert wait_gone([int(pid or 0)], 0) == []
    new = eventually(lambda: runner.status("p")[0].pid)
    assert new != pid
    eventually(lambda: count_supervisords(home) == 1, what="one supervisord is left")


def test_down_after_a_killed_supervisord_ends_the_orphans(home: Home, runner: SupervisorRunner) -> None:
    runner.start(spec(home))
    eventually(lambda: runner.status("p")[0].pid)
    supervisord(home).kill()
    eventually(lambda: not runner.running())
    runner.down()
    assert marked_processes(home.path) == []


def test_a_process_that_is_just_being_started_has_its_mark() -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            try:
                os.execve(command[0], command, {HOME_MARK: "/here"})
            finally:
                os._exit(1)
        seen = []
        while {HOME_MARK: "/here"} not in seen:
            seen.append(environment_of(psutil.Process(pid)))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert {} not in seen


def test_down_ends_processes_that_escaped_their_group(
    home: Home, runner: SupervisorRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_flywheel.plugin.runners.supervisor._ORPHAN_SECONDS", 1)
    runner.start(spec(home, code=STUBBORN))
    eventually(lambda: len(marked_processes(home.path, "p")) == 2, what="parent and child are up")
    runner.down()
    assert marked_processes(home.path) == []


def test_many_callers_start_one_supervisord(home: Home, runner: SupervisorRunner) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: SupervisorRunner(home).start(spec(home, f"p{i}")), range(6)))
    eventually(lambda: [s.alive for s in runner.status()] == [True] * 6)
    eventually(lambda: count_supervisords(home) == 1, what="one supervisord is left")


def test_everything_of_it_is_private(home: Home, runner: SupervisorRunner) -> None:
    runner.start(spec(home))
    eventually(lambda: home.log_file("p").exists())
    for path in [home.path, *home.supervisor.rglob("*"), *home.logs.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert path.parent == home.supervisor / "locks" or mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_a_home_with_a_long_or_odd_path_works(tmp_path: Path) -> None:
    home = Home(tmp_path / ("deep" * 15) / "100% a home" / ("er" * 30))
    runner = SupervisorRunner(home)
    try:
        runner.start(spec(home))
        eventually(lambda: runner.status("p")[0].alive)
        assert home.socket().is_relative_to(tempfile.gettempdir()) and len(str(home.socket())) < 100
        assert stat.S_IMODE(home.socket().parent.stat().st_mode) == 0o700
    finally:
        runner.down()
    assert not home.socket().exists()


def test_a_path_that_supervisord_cannot_read_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "a ;b")
    with pytest.raises(BadInput, match="a ;b"):
        SupervisorRunner(home).ensure_up()


def test_run_variables_of_the_starting_shell_do_not_reach_the_processes(
    home: Home, runner: SupervisorRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    its_own = {
        "MLFLOW_RUN_ID": "r",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "OTEL_SERVICE_NAME": "app",
        "TRACEPARENT": "00-1",
    }
    meant = {"MLFLOW_TRACKING_TOKEN": "t", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    for name, value in (its_own | meant).items():
        monkeypatch.setenv(name, value)
    runner.start(spec(home))
    pid = eventually(lambda: runner.status("p")[0].pid)
    environment = eventually(lambda: "FLYWHEEL_PROCESS" in (e := psutil.Process(pid).environ()) and e)
    assert not its_own.keys() & environment.keys()
    assert meant.items() <= environment.items()


def test_a_process_that_cannot_live_is_reported(home: Home, runner: SupervisorRunner) -> None:
    runner.start(spec(home, code="raise SystemExit(3)"))
    status = eventually(lambda: next((s for s in runner.status("p") if s.state == "backoff"), None))
    assert status and not status.alive


def test_a_supervisord_that_cannot_start_says_why(home: Home) -> None:
    home.create()
    (home.supervisor / "supervisord.log").mkdir()
    with pytest.raises(Unavailable, match="did not start.*supervisord.log"):
        SupervisorRunner(home).ensure_up()


def test_signals_to_a_process_that_is_not_running_are_no_error(home: Home, runner: SupervisorRunner) -> None:
    runner.start(spec(home, code="raise SystemExit(3)"))
    eventually(lambda: runner.status("p")[0].state == "backoff")
    runner.signal("p", 1)
    assert os.getpid() not in [p.pid for p in marked_processes(home.path)]
