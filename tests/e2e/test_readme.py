"""The README's own commands, as they stand there: a model of flights, from its registration to the last process gone."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from support.certificates import make_certificate
from support.processes import end_group, free_port
from support.waiting import eventually
from support.warm_shell import WarmShell, warm_shell

from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.processes import end_processes, marked_processes

README = (Path(__file__).parents[2] / "README.md").read_text()
OURS = ("mlflow", "flywheel", "curl", "export")
ASKED = 600


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words of every command in the README that is about us, comments left out."""
    lines = "".join(blocks("console")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(mlflow deployments help [^`]*)`", README)
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words and words[0] in OURS]


class Shell:
    """Runs the README's commands, with the default ports replaced by free ones, and keeps account of them."""

    def __init__(self, folder: Path, warm: WarmShell) -> None:
        self.folder = folder
        self.warm = warm
        self.ports = {"5000": str(free_port()), "8000": str(free_port())}
        self.left = commands()
        scripts = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
            "FLYWHEEL_HOME": str(folder / "home"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def take(self, *start: str) -> list[str]:
        """Return the README's next command that starts so; each is there to be taken once."""
        words = next((words for words in self.left if words[: len(start)] == [*start]), None)
        assert words is not None, f"the README has no command (more) that begins with {' '.join(start)!r}"
        self.left.remove(words)
        return [self.local(word) for word in words]

    def local(self, word: str) -> str:
        for port, free in self.ports.items():
            word = re.sub(rf"(?<=[:=]){port}\b", free, word)
        return word

    def run(self, *start: str, more: tuple[str, ...] = ()) -> str:
        return self.execute([*self.take(*start), *more])

    def execute(self, words: list[str]) -> str:
        done = self.warm.run(words, self.environment, self.folder, timeout=200)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def flights(n: int, seed: int) -> pd.DataFrame:
    """Return flights of which the far ones and one carrier's are late more often."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"carrier": rng.choice(["UA", "AA", "DL"], n), "distance": rng.integers(100, 3000, n).astype(float)}
    )
    odds = (frame["carrier"] == "UA") * 1.5 + (frame["distance"] - 1500) / 700
    return frame.assign(late=(rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int))


@pytest.fixture
def warm() -> Iterator[WarmShell]:
    with warm_shell() as shell:
        yield shell


@pytest.fixture
def shell(tmp_path: Path, warm: WarmShell) -> Iterator[Shell]:
    """Return a shell with the README's MLflow server running; nothing of it outlives the test."""
    made = Shell(tmp_path, warm)
    command = [*made.take("mlflow", "server"), "--port", made.ports["5000"], "--workers", "1"]
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, env=made.environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _, setting = made.take("export")
        name, _, url = setting.partition("=")
        made.environment[name] = url
        eventually(lambda: requests.get(f"{url}/health", timeout=2).ok, timeout=90, every=0.3)
        yield made
    finally:
        end_group(server)
        end_processes(marked_processes(tmp_path / "home"), 10)


def register_by_the_readmes_python(url: str) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    training = flights(1500, 0)
    X = training[["carrier", "distance"]]
    columns = make_column_transformer((OneHotEncoder(), ["carrier"]), (StandardScaler(), ["distance"]))
    model = make_pipeline(columns, LogisticRegression()).fit(X, training["late"])
    (snippet,) = blocks("python")
    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)
    exec(compile(snippet, "README.md", "exec"), {"model": model, "X": X, "validation_frame": flights(800, 1)})  # noqa: S102 - our own README


def ask(curl: list[str]) -> dict[str, Any]:
    """Ask what the curl command asks."""
    assert curl[0] == "curl" and curl[2] == "-H" and curl[4] == "-d" and len(curl) == 6
    header, _, value = curl[3].partition(": ")
    response = requests.post(curl[1], data=curl[5], headers={header: value}, timeout=30)
    assert response.ok, response.text
    return dict(response.json())


def ask_more(url: str, folder: Path) -> None:
    """Ask about flights whose outcome is known, and write the labels of all that was asked."""
    asked = flights(ASKED, 2)
    ids = [f"2013-03-01/{n}" for n in range(ASKED)]
    rows = asked[["carrier", "distance"]].to_dict("records")
    requests.post(
        url, json={"dataframe_records": rows, "client_request_id": ids}, timeout=30
    ).raise_for_status()
    labels = pd.DataFrame({"client_request_id": ids, "label": asked["late"]})
    labels.loc[len(labels)] = ["2013-02-03/UA1545", 1]
    labels.to_csv(folder / "labels.csv", index=False)


def open_to_others(shell: Shell, folder: Path) -> None:
    """Deploy with the README's token and certificate, and ask without and with the token."""
    _, setting = shell.take("export")
    name, _, _ = setting.partition("=")
    shell.environment[name] = "what-openssl-says"
    cert, _ = make_certificate(folder)
    shell.run("mlflow", "deployments", "create")
    status = json.loads(shell.execute(["flywheel", "status", "--json"]))
    (url,) = [d["url"] for d in status["deployments"] if d["name"] == "late-open"]
    rows = {"dataframe_records": flights(1, 4)[["carrier", "distance"]].to_dict("records")}
    for headers, said in (({}, 401), ({"Authorization": f"Bearer {shell.environment[name]}"}, 200)):
        answer = requests.post(f"{url}/invocations", json=rows, headers=headers, verify=cert, timeout=30)
        assert answer.status_code == said, answer.text


@pytest.mark.timeout(480)  # a busy machine takes its time
def test_the_readmes_commands_do_what_they_say(shell: Shell, tmp_path: Path) -> None:
    url = shell.environment["MLFLOW_TRACKING_URI"]
    register_by_the_readmes_python(url)
    (tmp_path / "flights").mkdir()
    flights(300, 3).to_csv(tmp_path / "flights" / "2013-03-01.csv", index=False)

    deploy = ("mlflow", "deployments", "create")
    first, batch, stream, second = (shell.take(*deploy) for _ in range(4))
    assert second == [*first, "-C", f"port={shell.ports['8000']}"]  # the first one again, for curl
    with ThreadPoolExecutor(3) as pool:
        assert [said.split()[-1] for said in pool.map(shell.execute, (second, batch, stream))] == [
            "created"
        ] * 3

    curl = shell.take("curl")
    answer = ask(curl)
    assert answer["predictions"] in ([0], [1]) and len(answer["prediction_ids"]) == 1
    ask_more(curl[1], tmp_path)
    home = Home(tmp_path / "home")
    eventually(lambda: (home.path / "tables").exists())
    given = json.loads(shell.run("flywheel", "feedback", more=("--json",)))
    assert given["accepted"] == ASKED + 1
    status = json.loads(shell.run("flywheel", "status", more=("--json",)))
    assert [(d["name"], d["status"], d["version"]) for d in status["deployments"]] == [
        ("late-batch", "ready", "1"),
        ("late-stream", "ready", "1"),
        ("late-web", "ready", "1"),
    ]
    assert requests.get(f"{url}/flywheel/", timeout=30).ok
    assert "input_topic" in shell.run("mlflow", "deployments", "help")

    shell.run("flywheel", "up")
    assert re.search(r"late-web +web", shell.run("flywheel", "status"))
    assert shell.run("flywheel", "logs")
    examined = json.loads(shell.run("flywheel", "doctor", more=("--json",)))["findings"]
    assert "fail" not in {finding["level"] for finding in examined}, examined
    assert {"MLflow", "page", "processes", "late-web", "late-batch", "late-stream"} <= {
        finding["check"] for finding in examined
    }
    seen = json.loads(shell.run("flywheel", "monitor", more=("--json",)))
    assert {v["monitor"] for v in seen["verdicts"]} >= {
        "drift",
        "performance",
        "quality",
        "latency",
        "relevance",
    }
    assert seen["rows"] == ASKED + 1
    retrained = json.loads(shell.run("flywheel", "retrain", more=("--json",)))
    assert retrained["gate"] is not None, retrained
    # the gate's word is as it may be: there and back again, in the order that leaves the champion as it was
    moves = {"promote": ("--force", "--json"), "rollback": ("--json",)}
    for move in sorted(moves, reverse=retrained["promoted"]):
        moved = json.loads(shell.run("flywheel", move, more=moves[move]))
        assert (moved["status"], moved["pinned"]) == ("done", []), moved
    assert "is paused by" in shell.run("flywheel", "pause")
    assert "goes on" in shell.run("flywheel", "resume")
    tested = json.loads(shell.run("flywheel", "backtest", more=("--json",)))
    assert sum(period["labelled"] for period in tested["periods"]) == ASKED + 1
    report = {"run_uuid": tested["run_id"], "path": "reports/backtest.html"}
    assert "Back-test of" in requests.get(f"{url}/get-artifact", params=report, timeout=30).text
    scored = json.loads(shell.run("flywheel", "batch", "run", more=("--json",)))
    assert (scored["rows_out"], scored["files"]) == (300, 1)
    assert list((tmp_path / "answers").rglob("*.parquet"))
    assert "cooldown" in shell.run("flywheel", "loop", "show")
    assert "cheapest for this: " in shell.run("flywheel", "cost")
    open_to_others(shell, tmp_path)
    assert "told from now on" in shell.run("flywheel", "alerts")
    assert "deployment-late-web" in shell.run("flywheel", "down")
    assert marked_processes(home.path) == []
    assert shell.left == [], "the README has commands that this test does not run"
