"""`flywheel doctor` over a home that is well, and over what can be wrong with one."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.mlflow_server import mlflow_server
from support.processes import free_port
from support.waiting import eventually

from mlflow_flywheel.pipelines.spool import model_spool
from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.base import ProcessSpec
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner

Found = dict[str, list[dict[str, str | None]]]


@pytest.fixture
def home(unbound_home: Home) -> Home:
    return unbound_home


def doctor(home: Home, fails: bool) -> Found:
    """Return what was found, by check."""
    said = CliRunner().invoke(main, ["doctor", "--json", "--home", str(home.path)])
    assert said.exit_code == int(fails), said.output
    found: Found = {}
    for finding in json.loads(said.stdout)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def test_a_home_from_its_first_day_to_its_worst(home: Home, tmp_path: Path) -> None:
    found = doctor(home, fails=False)
    assert [each["level"] for each in found["MLflow"] + found["processes"]] == ["warn", "ok"]
    assert home.tracking_uri is None, "looking binds nothing"
    with mlflow_server(tmp_path) as uri:
        up = CliRunner().invoke(main, ["up", "--tracking-uri", uri, "--home", str(home.path)])
        assert up.exit_code == 0, up.output
        eventually(lambda: all(p.state == "running" for p in SupervisorRunner(home).status()))
        found = doctor(home, fails=False)
        assert {each["level"] for findings in found.values() for each in findings} == {"ok"}
        assert found["page"][0]["said"] == f"{uri}/flywheel/"
    found = doctor(home, fails=True)
    assert found["MLflow"][0]["level"] == "fail" and "page" not in found
    runner, broken = SupervisorRunner(home), (sys.executable, "-c", "raise SystemExit('no such thing')")
    runner.start(ProcessSpec("deployment-broken", broken, home.log_file("deployment-broken"), stop_seconds=2))
    runner.stop("daemon")

    def remedies() -> str:
        return "\n".join(str(each["remedy"]) for each in doctor(home, fails=True)["processes"])

    eventually(lambda: "'flywheel logs broken' says why" in remedies())
    shown = CliRunner().invoke(main, ["doctor", "--home", str(home.path)])
    assert shown.exit_code == 1 and "fail" in shown.output


def test_a_server_of_another_version_time_and_kind_is_told(home: Home) -> None:
    status = 200

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status if self.path == "/version" else 404)
            self.send_header("Date", "Tue, 01 Jan 2013 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(b"2.9.1\n" if self.path == "/version" else b"")

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home.create()
        home.bind(f"http://127.0.0.1:{server.server_port}")
        found = doctor(home, fails=False)
        for status, words in ((401, "refuses us"), (500, "answers 500")):  # noqa: B007 (the server reads it)
            assert words in str(doctor(home, fails=True)["MLflow"][0]["said"])
        server.shutdown()
    assert [found[check][0]["level"] for check in ("MLflow", "clock", "page")] == ["warn"] * 3
    assert "is version 2.9.1" in str(found["MLflow"][0]["said"])
    assert "--app-name flywheel" in str(found["page"][0]["remedy"])


def test_a_missing_daemon_and_rows_that_wait_for_it_are_told(home: Home) -> None:
    home.create()
    home.bind(f"http://127.0.0.1:{free_port()}")
    with closing(Context.open(home).records) as records:
        records.add_deployment(
            "late-batch", model_uri="models:/late/1", model_name="late", mode="batch",
            config={"mode": "batch"}, flavor="sklearn", version="1", status="ready",
        )  # fmt: skip
        records.add_deployment(
            "late-old", model_uri="models:/late/2", model_name="late", mode="batch",
            config={"mode": "batch"}, flavor="sklearn", status="failed", message="there is no version 2",
        )  # fmt: skip
    slot = model_spool(home.spool, "late") / "predictions" / "slot-0"
    slot.mkdir(parents=True)
    (slot / "1.seg").write_bytes(b"{}")
    os.utime(slot / "1.seg", (0, 0))
    found = doctor(home, fails=True)
    assert found["processes"][0]["remedy"] == "flywheel up"
    assert [found[name][0]["level"] for name in ("late-batch", "late-old")] == ["ok", "fail"]
    assert found["late-old"][0]["said"] == "is failed: there is no version 2"
    assert "wait in the spool" in str(found["table of late"][0]["said"])
