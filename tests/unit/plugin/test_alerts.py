"""People are told each action once, by a real service on loopback that may be away for a while."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlflow_flywheel.pipelines.errors import BadInput, MissingExtra, NotFound, Unavailable
from mlflow_flywheel.plugin.alert_places import add_place, places, remove_place
from mlflow_flywheel.plugin.alerts import tell
from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.messenger import send, shown

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
EVIDENCE = {
    "version": "3",
    "window": {"start": "2024-04-01", "end": "2024-05-01"},
    "verdicts": {"performance": {"status": "alarm", "summary": "AUC 0.61, was 0.70", "metrics": {}}},
    "monitor_run_id": "abc123",
}


class Desk:
    """A webhook that writes down what it is told."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"json://user:secret@127.0.0.1:{server.server_port}/hook"
        self.heard: list[dict[str, Any]] = []
        self.open = True

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.heard]


@contextmanager
def listening() -> Iterator[Desk]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if desk.open:
                desk.heard.append(body)
            self.send_response(200 if desk.open else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    desk = Desk(server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield desk
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with listening() as opened:
        yield opened


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    opened = Context.open(Home(tmp_path / "home"))
    yield opened
    opened.records.close()


def act(context: Context, kind: str, status: str, key: str, reason: str = "because") -> int:
    return context.records.add_action("late", kind, reason, EVIDENCE, NOON, key, status)


def test_an_alarm_is_told_once_with_its_evidence(context: Context, desk: Desk) -> None:
    act(context, "alert", "done", "before")  # nobody was told then, and now it is no news
    add_place(context.home, desk.url)
    act(context, "alert", "done", "a1", "performance is worse")
    for _ in range(3):
        tell(context)
    (message,) = desk.heard
    assert message["title"] == "late: alarm"
    for part in (
        "performance is worse",
        "performance alarm: AUC 0.61, was 0.70",
        "version 3",
        "MLflow run abc123",
    ):
        assert part in message["message"]
    act(context, "alert_end", "done", "a2")
    tell(context)
    assert desk.titles == ["late: alarm", "late: the alarm is over"]


def test_a_retraining_is_told_when_it_is_settled(context: Context, desk: Desk) -> None:
    add_place(context.home, desk.url)
    action = act(context, "retrain", "queued", "r1")
    tell(context)
    assert desk.heard == []
    context.records.update_action(
        action, "waiting", {"reason": "the challenger is better; waiting for approval"}
    )
    tell(context)
    context.records.update_action(action, "promoted", {"reason": "approved"})
    tell(context)
    assert desk.titles == ["late: a challenger waits for approval"]
    assert "outcome: the challenger is better" in desk.heard[0]["message"]


def test_what_a_place_does_not_take_is_told_later_and_keeps_no_other_from_the_news(
    context: Context, desk: Desk
) -> None:
    with listening() as other:
        add_place(context.home, desk.url)
        add_place(context.home, other.url)
        desk.open = False
        act(context, "alert", "done", "a1")
        with pytest.raises(Unavailable, match="did not take the message 'late: alarm'") as raised:
            tell(context)
        assert "secret" not in raised.value.message
        assert (desk.titles, other.titles) == ([], ["late: alarm"])
        desk.open = True
        tell(context)
        assert (desk.titles, other.titles) == (["late: alarm"], ["late: alarm"])


def test_places_are_kept_in_private_and_shown_without_secrets(context: Context, desk: Desk) -> None:
    home = str(context.home.path)

    def flywheel(*arguments: str) -> str:
        said = CliRunner().invoke(main, ["alerts", *arguments, "--home", home])
        assert said.exit_code == 0, said.output
        assert "secret" not in said.output
        return said.output

    assert "nobody is told" in flywheel("list")
    assert "told from now on: json://user:****@127.0.0.1" in flywheel("add", desk.url)
    assert "user:****@127.0.0.1" in flywheel("list")
    flywheel("test")
    assert desk.titles == ["flywheel: a test"]
    file = context.home.path / "secrets" / "alerts.json"
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadInput, match="told already"):
        add_place(context.home, desk.url)
    assert "told no more" in flywheel("remove", "1")
    assert places(context.home) == []
    with pytest.raises(NotFound, match="no place 1"):
        remove_place(context.home, 1)


def test_a_url_that_names_no_service_is_refused_without_its_secrets(context: Context) -> None:
    with pytest.raises(BadInput, match="'slakc://...' names no service") as raised:
        add_place(context.home, "slakc://secret/token")
    assert "secret" not in raised.value.message
    with pytest.raises(BadInput, match="names no service"):
        shown("just words")


def test_without_apprise_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    with pytest.raises(MissingExtra, match=r'pip install "mlflow-flywheel\[alerts\]"'):
        send("json://127.0.0.1:1", "title", "body")
