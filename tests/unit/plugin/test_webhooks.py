"""The daemon's listener: a port that is kept, and webhooks that are heard only when they are signed, fresh and new."""

from __future__ import annotations

import json
import logging
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.webhooks.delivery import _generate_hmac_signature

from mlflow_flywheel.pipelines.errors import BadInput, NotFound, Unavailable
from mlflow_flywheel.plugin.background import Repeating, Trouble
from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.daemon_server import DaemonServer
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.webhook_file import Webhook, keep_webhook
from mlflow_flywheel.plugin.webhook_inbox import DELIVERY, MOST_BYTES, SIGNATURE, TIMESTAMP, WebhookInbox
from mlflow_flywheel.plugin.webhooks import _mlflow_errors

SECRET = "a-secret-of-two"
ALIAS = {"name": "late", "alias": "champion", "version": "4"}


@dataclass
class Desk:
    """A home with a webhook, its listener, and how often something was heard; deliveries as MLflow sends them."""

    context: Context
    heard: list[float] = field(default_factory=list)
    url: str = ""
    inbox: Any = None

    def delivery(
        self,
        body: bytes | None = None,
        *,
        ago: float = 0,
        secret: str = SECRET,
        name: str = "d-1",
        **event: str,
    ) -> tuple[dict[str, str], bytes]:
        said = {"entity": "model_version_alias", "action": "created", "data": ALIAS, **event}
        body = json.dumps(said).encode() if body is None else body
        timestamp = str(int(time.time() - ago))
        signature = _generate_hmac_signature(secret, name, timestamp, body.decode())
        return {SIGNATURE: signature, TIMESTAMP: timestamp, DELIVERY: name}, body

    def post(self, headers: dict[str, str], body: bytes) -> int:
        return requests.post(self.url, data=body, headers=headers, timeout=10).status_code


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    context = Context.open(Home(tmp_path_factory.mktemp("webhooks")))
    desk = Desk(context)
    desk.inbox = WebhookInbox(context.home, lambda: desk.heard.append(time.time()))
    with closing(DaemonServer(context, desk.inbox)) as server:
        desk.url = server.webhook_url
        yield desk
    context.records.close()


@pytest.fixture
def desk(opened: Desk) -> Desk:
    keep_webhook(opened.context.home, Webhook("id", "http://mlflow", opened.url, "2024", SECRET))
    opened.heard.clear()
    return opened


def test_a_delivery_of_mlflows_is_heard_once(desk: Desk) -> None:
    signed = desk.delivery(name="first")
    before = desk.inbox.status()
    assert desk.post(*signed) == 200
    assert desk.post(*signed) == 409
    assert desk.post(*desk.delivery(name="second", action="deleted")) == 200
    assert len(desk.heard) == 2
    status = desk.inbox.status()
    assert (status["heard"] - before["heard"], status["refused"] - before["refused"]) == (2, 1)
    assert status["last_refusal"] == "the delivery was heard before" and status["last_heard"] is not None


def test_nothing_else_is_heard(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    good, body = desk.delivery(name="never")
    caplog.set_level(logging.DEBUG)
    wrong = {
        "unsigned": (401, {}, body),
        "half signed": (401, {SIGNATURE: good[SIGNATURE]}, body),
        "by another secret": (401, *desk.delivery(name="never", secret="guessed")),
        "not even text": (401, {**good, SIGNATURE: "v1,\xff"}, body),
        "another body": (401, good, body.replace(b'"4"', b'"5"')),
        "another id": (401, {**good, DELIVERY: "d-2"}, body),
        "another time": (401, {**good, TIMESTAMP: str(int(good[TIMESTAMP]) + 1)}, body),
        "no time": (401, {**good, TIMESTAMP: "yesterday"}, body),
        "stale": (401, *desk.delivery(name="never", ago=301)),
        "from the future": (401, *desk.delivery(name="never", ago=-310)),
        "no JSON": (400, *desk.delivery(b"no json", name="n-1")),
        "no object": (400, *desk.delivery(b"[1]", name="n-2")),
        "another event": (422, *desk.delivery(name="n-3", entity="model_version")),
        "too large": (413, *desk.delivery(b" " * (MOST_BYTES + 1), name="n-4")),
    }
    for what, (code, headers, content) in wrong.items():
        assert desk.post(headers, content) == code, what
    assert desk.heard == []
    assert SECRET not in caplog.text and SECRET not in repr(Webhook("1", "s", "u", "t", SECRET))
    assert desk.post(good, body) == 200, "what was refused has not used the delivery up"


def test_a_body_is_not_read_before_its_length_is_known(desk: Desk) -> None:
    host, port = desk.url.split("/")[2].split(":")
    for length, code in ((None, 411), ("many", 411), ("9" * 20, 413), ("-1", 411)):
        with closing(HTTPConnection(host, int(port), timeout=10)) as connection:
            connection.putrequest("POST", "/webhooks/mlflow")
            if length is not None:
                connection.putheader("Content-Length", length)
            connection.endheaders()
            assert connection.getresponse().status == code
    assert requests.post(desk.url + "/other", data=b"{}", timeout=10).status_code == 404
    assert requests.get(desk.url, timeout=10).status_code == 404


def test_what_was_sent_before_the_daemon_began_and_what_nobody_waits_for_is_refused(desk: Desk) -> None:
    headers, body = desk.delivery(ago=5)
    fresh = WebhookInbox(desk.context.home, lambda: desk.heard.append(0.0))
    with pytest.raises(Exception, match="not fresh"):
        fresh.take(headers, body)
    keep_webhook(desk.context.home, None)
    assert desk.post(*desk.delivery(name="x")) == 404
    assert desk.heard == []


def test_the_secret_is_in_a_private_file(desk: Desk) -> None:
    file = desk.context.home.path / "secrets" / "webhook.json"
    assert SECRET in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_what_is_done_every_so_often_is_done_at_once_when_it_is_nudged() -> None:
    done, stop = threading.Semaphore(0), threading.Event()
    thread = Repeating("rollouts", 3600, done.release, stop, Trouble())
    thread.start()
    for _ in range(2):
        thread.nudge()
        assert done.acquire(timeout=10)
    stop.set()
    thread.nudge()
    thread.join(10)
    assert not thread.is_alive() and not done.acquire(blocking=False)


def test_the_port_is_kept_unless_somebody_took_it(tmp_path: Path) -> None:
    context = Context.open(Home(tmp_path / "home"))
    inbox = WebhookInbox(context.home, lambda: None)
    with closing(DaemonServer(context, inbox)) as server:
        first = server.metrics_url
        assert "flywheel_spool_bytes" in requests.get(first, timeout=10).text
        assert requests.get(first.replace("/metrics", "/"), timeout=10).status_code == 404
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(first.rpartition(":")[2].partition("/")[0])))
        taken.listen()
        with closing(DaemonServer(context, inbox)) as server:
            second = server.metrics_url
    assert second != first
    with closing(DaemonServer(context, inbox)) as server:
        assert server.metrics_url == second
    context.records.close()


@pytest.mark.parametrize(
    ("uri", "arguments", "said"),
    [
        ("sqlite:///mlflow.db", [], "is no MLflow server: nobody would send anything"),
        ("http://mlflow.example:5000", [], "the daemon listens on loopback only; .* --url https://"),
        ("http://127.0.0.1:1", ["--url", "ftp://me"], "--url 'ftp://me' is no http"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, arguments: list[str], said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    home = ["--home", str(tmp_path / "home")]
    answer = CliRunner().invoke(main, ["webhook", "create", *arguments, *home])
    assert answer.exit_code == 1
    assert re.search(said, answer.output), answer.output
    assert "no webhook" in CliRunner().invoke(main, ["webhook", "status", *home]).output
    gone = CliRunner().invoke(main, ["webhook", "delete", *home])
    assert gone.exit_code == 1 and "this home has no webhook" in gone.output


@pytest.mark.parametrize(
    ("code", "url", "kind", "said"),
    [
        (
            "INVALID_PARAMETER_VALUE",
            "http://127.0.0.1:5",
            BadInput,
            "start it with MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,",
        ),
        ("INVALID_PARAMETER_VALUE", "http://hooks.example", BadInput, "give it an https address"),
        (
            "RESOURCE_DOES_NOT_EXIST",
            "http://127.0.0.1:5",
            NotFound,
            "'flywheel webhook create' makes another",
        ),
        ("INTERNAL_ERROR", "http://127.0.0.1:5", Unavailable, "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY is set"),
    ],
)
def test_what_mlflow_refuses_comes_with_a_remedy_and_without_a_password(
    code: str, url: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as refused, _mlflow_errors("http://me:pass-word@mlflow", url):
        raise MlflowException("it will not", ErrorCode.Value(code))
    assert "pass-word" not in str(refused.value)
