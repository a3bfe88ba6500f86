"""`flywheel demo` as a user runs it: the installed command, real services, real flights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
from support.waiting import eventually

FLYWHEEL = str(Path(sys.executable).with_name("flywheel"))
MARK = "FLYWHEEL_TEST_DEMO"
DAYS = 15  # one turn of the loop after fourteen, and a day with what it decided


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all demos of this file play, one after the other: the flights are read once."""
    return tmp_path_factory.mktemp("demo") / "demo"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Mark whatever the demo starts, and let nothing of it outlive the test."""
    mark = str(tmp_path)
    yield {**os.environ, MARK: mark}
    for process in marked(mark):
        process.kill()


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_ctrl_c_in_the_middle_stops_everything(
    tmp_path: Path, folder: Path, environment: dict[str, str]
) -> None:
    with started(tmp_path, folder, environment) as (process, said):
        eventually(
            lambda: process.poll() is not None or "reading the flights" in said(), 200, what="it trains"
        )
        assert len(marked(environment[MARK])) >= 3  # this one, the supervisor and MLflow
        for _ in range(3):  # impatience does not cut the stopping short
            process.send_signal(signal.SIGTERM)
        assert ended(process) == 130, said()
        assert "everything is stopped" in said()
    assert not marked(environment[MARK])


def test_a_replay_is_complete_counted_and_stays_to_be_looked_at_until_ctrl_c(
    tmp_path: Path, folder: Path, environment: dict[str, str]
) -> None:
    file = tmp_path / "summary.json"
    with started(tmp_path, folder, environment, "--days", str(DAYS), "--json", str(file)) as (process, said):
        eventually(
            lambda: process.poll() is not None or "until Ctrl-C" in said(), 200, what="the replay ends"
        )
        (page,) = re.findall(r"flywheel page +(http://\S+)", said())
        answer = requests.get(page, timeout=20)
        assert answer.ok and "late-stream" in answer.text
        process.send_signal(signal.SIGINT)
        assert ended(process) == 0, said()
        shown = said()
    assert not marked(environment[MARK])

    summary = json.loads(file.read_text())
    (month,) = summary["months"]
    assert month["month"] == 2
    for side in ("static", "flywheel"):
        assert 0.55 < month[side]["auc"] < 0.8
        assert 0.3 < month[side]["log_loss"] < 0.7
        assert 0.1 < month[side]["brier"] < 0.25
    found = {d["name"]: d for d in summary["deployments"]}
    assert {name: d["mode"] for name, d in found.items()} == {
        "late-web": "web",
        "late-stream": "stream",
        "late-batch": "batch",
    }
    table = summary["table"]
    assert table["rows"] == table["expected"] == sum(d["predictions"] for d in found.values())
    assert all(d["predictions"] > 3000 for d in found.values())
    assert all(d["cpu_seconds"] > 0 and d["cost_per_1k"] > 0 for d in found.values())
    assert table["duplicates"] == 0
    assert table["labelled"] == month["flights"]

    (retraining,) = summary["retrainings"]
    assert re.match(r"(performance|labels): ", retraining["reason"])
    assert retraining["run_id"] and retraining["gate"]["rows"] > 1000
    assert retraining["promoted"] is retraining["gate"]["promote"]
    version = "2" if retraining["promoted"] else "1"
    assert month["version"] == version
    for deployment in found.values():
        assert deployment["status"] == "ready" and deployment["version"] == version
    assert summary["seconds"] > 0 and summary["peak_memory_bytes"] > 2**28
    for text in (
        "January model",
        "what they cost",
        "What the loop did",
        "complete, nothing twice",
        "newest drift report",
        "Everything is stopped",
    ):
        assert text in shown


def ended(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code; None when it goes on for too long."""
    try:
        return process.wait(100)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def started(
    tmp_path: Path, folder: Path, environment: dict[str, str], *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run the demo over February; yields the process and what it has said so far."""
    output = tmp_path / "output.txt"
    command = [FLYWHEEL, "demo", "--months", "2-2", "--home", str(folder), *options]
    with output.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process, output.read_text
    finally:
        process.kill()
        process.wait()
