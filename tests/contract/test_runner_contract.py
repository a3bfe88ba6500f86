"""What every Runner must do, on real processes. A new runner joins by adding its name to RUNNERS."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.base import ProcessSpec, ProcessStatus, Runner
from mlflow_flywheel.plugin.runners.processes import wait_gone
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner

RUNNERS: dict[str, Callable[[Home], Runner]] = {"supervisor": SupervisorRunner}

SLEEPER = "import sys, signal; print('up', sys.argv[1:], flush=True); signal.pause()"


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    runner = RUNNERS[request.param](Home(tmp_path / "home"))
    yield runner
    runner.down()


def spec_of(tmp_path: Path, name: str = "sleeper", *arguments: str, code: str = SLEEPER) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=(sys.executable, "-c", code, *arguments),
        log_file=tmp_path / f"{name}.log",
        environment={"GREETING": "hello"},
        stop_seconds=5,
    )


def running(runner: Runner, name: str) -> ProcessStatus:
    def look() -> ProcessStatus | None:
        (status,) = runner.status(name)
        return status if status.alive and status.pid else None

    found = eventually(look, what=f"{name} runs")
    assert found is not None
    return found


def test_a_started_process_runs_with_its_arguments_environment_and_log(
    runner: Runner, tmp_path: Path
) -> None:
    awkward = ["100% sure", 'it\'s "quoted"', " # no comment ; none", "two\nlines", "%(here)s", "$HOME"]
    code = "import os, sys, json; print(json.dumps([sys.argv[1:], os.environ['ODD']]), flush=True)\n"
    code += "import signal; signal.pause()"
    spec = spec_of(tmp_path, "odd", *awkward, code=code)
    runner.start(
        ProcessSpec(spec.name, spec.command, spec.log_file, {"ODD": awkward[1] + awkward[2] + awkward[0]})
    )
    line = eventually(lambda: spec.log_file.read_text().splitlines()[0])
    assert json.loads(line) == [awkward, awkward[1] + awkward[2] + awkward[0]]
    assert running(runner, "odd").pid


def test_a_killed_process_is_back_by_itself(runner: Runner, tmp_path: Path) -> None:
    runner.start(spec_of(tmp_path))
    first = running(runner, "sleeper").pid
    assert first
    psutil.Process(first).kill()
    eventually(lambda: running(runner, "sleeper").pid != first, what="another process has taken its place")


def test_the_same_spec_again_changes_nothing_and_another_one_replaces(runner: Runner, tmp_path: Path) -> None:
    runner.start(spec_of(tmp_path))
    first = running(runner, "sleeper").pid
    runner.start(spec_of(tmp_path))
    assert running(runner, "sleeper").pid == first
    runner.start(spec_of(tmp_path, "sleeper", "other"))
    second = running(runner, "sleeper").pid
    assert second != first
    eventually(lambda: psutil.Process(second).cmdline()[-1] == "other")


def test_programs_come_and_go_without_touching_the_others(runner: Runner, tmp_path: Path) -> None:
    runner.start(spec_of(tmp_path, "a"))
    kept = running(runner, "a").pid
    runner.start(spec_of(tmp_path, "b"))
    gone = running(runner, "b").pid
    assert gone
    runner.stop("b")
    assert wait_gone([gone], 0) == []
    assert [s.name for s in runner.status()] == ["a"]
    assert running(runner, "a").pid == kept


def test_stop_ends_the_whole_process_group(runner: Runner, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, signal; p = subprocess.Popen([sys.executable, '-c', 'import signal; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()']); "
        "print('child', p.pid, flush=True); signal.pause()"
    )
    spec = spec_of(tmp_path, "parent", code=code)
    runner.start(ProcessSpec(spec.name, spec.command, spec.log_file, stop_seconds=1))
    text = eventually(
        lambda: (t := spec.log_file.read_text()).count("\n") == 2 and t, what="parent and child are up"
    )
    child = int(next(line for line in str(text).splitlines() if line.startswith("child")).split()[1])
    runner.stop("parent")
    assert wait_gone([child], 0) == []


def test_a_signal_reaches_the_process(runner: Runner, tmp_path: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, lambda *_: print('reload', flush=True)); print('up', flush=True)\n"
        "while True: signal.pause()"
    )
    spec = spec_of(tmp_path, "reloads", code=code)
    runner.start(spec)
    eventually(lambda: "up" in spec.log_file.read_text())
    runner.signal("reloads", signal.SIGHUP)
    eventually(lambda: "reload" in spec.log_file.read_text())


def test_restart_gives_a_new_process(runner: Runner, tmp_path: Path) -> None:
    runner.start(spec_of(tmp_path))
    first = running(runner, "sleeper").pid
    runner.restart("sleeper")
    assert running(runner, "sleeper").pid != first


def test_down_leaves_nothing_and_up_brings_everything_back(runner: Runner, tmp_path: Path) -> None:
    runner.start(spec_of(tmp_path, "a"))
    runner.start(spec_of(tmp_path, "b"))
    pids = [running(runner, name).pid for name in ("a", "b")]
    assert [s.name for s in runner.down()] == ["a", "b"]
    assert wait_gone([pid for pid in pids if pid], 0) == []
    assert not runner.running()
    assert [(s.name, s.state) for s in runner.status()] == [("a", "stopped"), ("b", "stopped")]
    assert runner.down() == []
    runner.ensure_up()
    assert running(runner, "a").pid and running(runner, "b").pid


def test_what_is_stopped_while_all_is_down_does_not_come_back(runner: Runner, tmp_path: Path) -> None:
    runner.start(spec_of(tmp_path, "a"))
    runner.down()
    runner.stop("a")
    runner.ensure_up()
    assert runner.status() == []


def test_unknown_names_are_named_with_the_nearest(runner: Runner, tmp_path: Path) -> None:
    runner.start(spec_of(tmp_path, "deployment-late"))
    for act in (runner.stop, runner.restart, runner.status, lambda name: runner.signal(name, 1)):
        with pytest.raises(NotFound, match="'deployment-lete'.*did you mean 'deployment-late'"):
            act("deployment-lete")
    with pytest.raises(BadInput, match="'a:b'"):
        runner.start(spec_of(tmp_path, "a:b"))
