"""Parts of the demo that need no deployment: its folder, its port, its callers, its numbers and its command line."""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, Unavailable
from mlflow_flywheel.pipelines.inference_table import TableCounts
from mlflow_flywheel.plugin.demo.command import Interrupted, demo, ending_on_signals
from mlflow_flywheel.plugin.demo.flights import EVENT_TIME, FEATURES, KEY
from mlflow_flywheel.plugin.demo.scenario import POLICY, Plan
from mlflow_flywheel.plugin.demo.stage import choose_port, open_stage
from mlflow_flywheel.plugin.demo.summary import account, score
from mlflow_flywheel.plugin.demo.web_door import WebDoor
from mlflow_flywheel.plugin.spec_reading import parse_loop


def test_a_signal_that_hits_a_finalizer_ends_the_demo_nevertheless() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted), ending_on_signals():
        thing = Finalized()
        del thing  # what is raised there goes no further
        signal.pause()


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="not made by a demo"), open_stage(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_demo_starts_fresh_and_keeps_the_flights(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with open_stage(folder) as stage:
        (stage.work / "old.txt").touch()
        stage.cache.parent.mkdir()
        stage.cache.touch()
    with open_stage(folder) as stage:
        assert not (stage.work / "old.txt").exists()
        assert stage.cache.exists()


def test_two_demos_do_not_play_in_one_folder(tmp_path: Path) -> None:
    with open_stage(tmp_path / "demo"):
        pass
    with open(tmp_path / "demo" / "flywheel-demo", "a") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="plays in"), open_stage(tmp_path / "demo"):
            pass


def test_the_stage_does_not_follow_the_callers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_TABLES", "s3://somebody/elses")
    monkeypatch.setenv("FLYWHEEL_DATABASE_URL", "postgresql://somebody/else")
    with open_stage(tmp_path / "demo") as stage:
        assert stage.context.home.tables.startswith(str(tmp_path))
        assert stage.context.home.database_url.startswith("sqlite:///")


def test_a_taken_port_is_said_and_one_that_was_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port} is taken"):
            choose_port(port)
        monkeypatch.setattr("mlflow_flywheel.plugin.demo.stage.DEFAULT_PORT", port)
        chosen, remark = choose_port(None)
        assert chosen != port and remark is not None and str(chosen) in remark
    assert choose_port(port) == (port, None)


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(500)
    truth = (rng.random(500) < probability).astype(float)
    found = score(truth, probability)
    assert found.auc == pytest.approx(roc_auc_score(truth, probability))
    assert found.log_loss == pytest.approx(log_loss(truth, probability))
    assert found.brier == pytest.approx(brier_score_loss(truth, probability))


@pytest.mark.parametrize(
    ("rows", "ids", "labelled", "complete"),
    [(10, 10, 8, True), (9, 9, 8, False), (11, 10, 8, False), (10, 10, 7, False)],
)
def test_the_account_is_complete_only_when_nothing_is_missing_or_twice(
    rows: int, ids: int, labelled: int, complete: bool
) -> None:
    counts = TableCounts(rows=rows, distinct_ids=ids, labelled=labelled)
    assert account(counts, asked=10, labels=8).complete is complete


def test_the_policy_of_the_demo_is_a_valid_one() -> None:
    assert parse_loop({f"loop.{name}": value for name, value in POLICY.items()}) == POLICY


@pytest.mark.parametrize("months", [(1, 3), (5, 4), (2, 13)])
def test_months_outside_the_replay_are_refused(months: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give two of 2 to 12"):
        Plan(tmp_path, months)


@pytest.mark.parametrize("months", ["january", "2-", "2-4-6"])
def test_months_that_cannot_be_read_are_refused(months: str) -> None:
    result = CliRunner().invoke(demo, ["--months", months])
    assert result.exit_code == 2
    assert "give one such as 2-12" in result.output


def test_a_failure_is_one_line_with_the_place_of_the_logs(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    result = CliRunner().invoke(demo, ["--exit", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert "not made by a demo" in result.output and "Logs: " in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def service() -> Iterator[Callable[[list[int]], str]]:
    """Return a function that starts a service which answers with these statuses in turn."""
    servers: list[ThreadingHTTPServer] = []

    def serve(statuses: list[int]) -> str:
        left, lock = list(statuses), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                n = len(body["dataframe_split"]["data"])
                with lock:
                    status = left.pop(0) if left else 200
                answer = json.dumps({"predictions": [0] * n, "prediction_ids": [str(i) for i in range(n)]})
                self.send_response(status)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, format: str, *args: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def day_of_flights() -> pd.DataFrame:
    moments = pd.date_range("2013-02-01 12:00", periods=90, freq="2min", tz="UTC")
    frame = pd.DataFrame({name: 1.0 for name in FEATURES}, index=range(90)).assign(
        carrier="UA", origin="EWR", dest="IAH", temp=np.nan
    )
    return frame.assign(**{EVENT_TIME: moments, KEY: [f"flight {i}" for i in range(90)]})


@pytest.mark.parametrize("busy", [429, 503])
def test_a_busy_web_service_is_asked_again(service: Callable[[list[int]], str], busy: int) -> None:
    door = WebDoor("late-web", service([busy, busy, 200, busy]))
    door.ask(date(2013, 2, 1), day_of_flights())
    door.settle()
    assert door.asked == door.answered == 90
    door.close()


@pytest.mark.parametrize("status", [400, 500])
def test_other_answers_are_not_asked_for_again(service: Callable[[list[int]], str], status: int) -> None:
    door = WebDoor("late-web", service([status]))
    with pytest.raises(FlywheelError, match=f"late-web answered {status}"):
        door.ask(date(2013, 2, 1), day_of_flights())
    door.close()
