"""`mlflow deployments run-local`: in the foreground, and nothing left afterwards."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import requests
from mlflow.exceptions import MlflowException
from support.models import ZooModel
from support.waiting import eventually

from mlflow_flywheel.plugin.deployments import run_local
from mlflow_flywheel.plugin.runners.processes import marked_processes


@pytest.fixture
def model(zoo: Callable[[str], ZooModel], tracking_uri: str) -> ZooModel:
    model = zoo("classifier")
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    return model


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which temporary homes are made."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_batch_deployment_runs_once(
    model: ZooModel,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLYWHEEL_TABLES", str(tmp_path / "tables"))
    model.rows.to_parquet(tmp_path / "rows.parquet")
    run_local("try", model.uri, config={"mode": "batch", "input": "rows.parquet", "output": "answers"})
    answers = pq.read_table(tmp_path / "answers" / "rows.parquet").column("prediction").to_pylist()
    assert answers == mlflow.pyfunc.load_model(model.uri).predict(model.rows).tolist()
    assert f"{len(model.rows)} rows in" in capsys.readouterr().out
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "tables").exists(), "the caller's own tables are left alone"
    assert os.environ["FLYWHEEL_TABLES"] == str(tmp_path / "tables")


def test_a_batch_deployment_scores_a_query_and_says_what_it_set_aside(
    model: ZooModel, tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(tmp_path / "rows.db")) as connection:
        model.rows.to_sql("rows", connection, index=False)
    config = {
        "mode": "batch",
        "input": f"sqlite:///{tmp_path}/rows.db",
        "query": "SELECT * FROM rows",
        "output": "answers",
    }
    run_local("try", model.uri, config=config)
    answers = pq.read_table(tmp_path / "answers" / "query.parquet").column("prediction").to_pylist()
    assert answers == mlflow.pyfunc.load_model(model.uri).predict(model.rows).tolist()

    (tmp_path / "rows.csv").write_text("nothing\n1\n")
    run_local(
        "try", model.uri, config={"mode": "batch", "input": "rows.csv", "output": "more", "on_error": "skip"}
    )
    assert "set aside: 0 rows and 1 whole files" in capsys.readouterr().out
    with pytest.raises(MlflowException, match=r"password.*\$\{ITS_NAME\}") as error:
        run_local("try", model.uri, config={**config, "input": "postgresql://me:secret@host/db"})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "uri", "config", "said"),
    [
        ("try", None, {"mode": "batch"}, "needs input="),
        ("try", None, {"mode": "batch", "input": "nowhere.csv"}, "'nowhere.csv' does not exist"),
        ("try", "models:/nobody/1", {"mode": "web"}, "'nobody' or its version 1 does not exist"),
        ("Try it", None, {"mode": "web"}, "name 'Try it' is not valid"),
        ("try", None, {"mode": "web", "prot": "1"}, "did you mean 'port'"),
    ],
)
def test_what_cannot_run_says_why_and_leaves_nothing(
    model: ZooModel, temporary: Path, name: str, uri: str | None, config: dict[str, str], said: str
) -> None:
    with pytest.raises(MlflowException, match=said):
        run_local(name, uri or model.uri, config=config)
    assert list(temporary.iterdir()) == []


def test_a_web_deployment_serves_until_it_is_interrupted(
    model: ZooModel, tracking_uri: str, tmp_path: Path, temporary: Path
) -> None:
    command = [sys.executable, "-m", "mlflow", "deployments", "run-local", "-t", "flywheel", "--name", "try"]
    said = tmp_path / "said.txt"
    with said.open("w") as output:
        process = subprocess.Popen(
            [*command, "-m", model.uri, "-C", "mode=web"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "TMPDIR": str(temporary)},
        )
    try:
        eventually(lambda: "try serves" in said.read_text() or process.poll() is not None, timeout=150)
        url = re.search(r"try serves version \d+: url (\S+) ", said.read_text())
        assert url is not None, said.read_text()
        rows = model.rows.head(2).to_dict("records")
        answer = requests.post(f"{url[1]}/invocations", json={"dataframe_records": rows}, timeout=30)
        assert len(answer.json()["predictions"]) == 2
        (home,) = temporary.glob("flywheel-run-*")
        assert marked_processes(home)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, said.read_text()
    finally:
        process.kill()
    assert marked_processes(home) == []
    assert list(temporary.iterdir()) == []
    assert "stopping" in said.read_text() and "Traceback" not in said.read_text()
