"""What stands around the web app, each alone and all in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.certificates import make_certificate
from support.web import web_config
from werkzeug.test import Client

from mlflow_flywheel.pipelines.config import ModelRef, WebConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.tokens import read_token
from mlflow_flywheel.pipelines.web import middleware
from mlflow_flywheel.pipelines.web.exposure import check_certificate, check_config, check_exposed
from mlflow_flywheel.pipelines.web.guard import Guard
from mlflow_flywheel.pipelines.web.headers import Cors, SecurityHeaders
from mlflow_flywheel.pipelines.web.request_log import ROWS, RequestLog

TOKEN = "0123456789-token"
ORIGIN = "https://a.example"


class App:
    """An app that counts who reached it."""

    def __init__(self, status: str = "200 OK", headers: list[tuple[str, str]] | None = None) -> None:
        self.reached = 0
        self._status = status
        self._headers = headers or []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.reached += 1
        environ[ROWS] = 3
        start_response(self._status, [("Content-Length", "2"), *self._headers])
        return [b"{}"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer ü",
    ],
)
def test_the_guard_lets_nobody_in_without_the_token(header: str | None) -> None:
    app = App()
    headers = {} if header is None else {"Authorization": header}
    for path in ("/invocations", "/metrics", "/", "/ping/", "/v2/health/live/../infer", "//ping", "/PING"):
        answer = Client(Guard(app, TOKEN)).post(path, headers=headers)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert set(answer.get_json()) == {"error_code", "message"}  # type: ignore[arg-type]
        assert answer.get_json()["error_code"] == "UNAUTHENTICATED"  # type: ignore[index]
    assert app.reached == 0
    for path in ("/ping", "/health", "/v2/health/live", "/v2/health/ready"):
        assert Client(Guard(app, TOKEN)).get(path, headers=headers).status_code == 200


def test_the_guard_tells_a_browser_in_words() -> None:
    def ask(path: str, accept: str) -> Any:
        return Client(Guard(App(), TOKEN)).get(path, headers={"Accept": accept})

    for path in ("/", "/docs"):
        page = ask(path, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
        assert (page.status_code, page.mimetype, page.headers["WWW-Authenticate"]) == (
            401,
            "text/html",
            "Bearer",
        )
        assert "This service needs a token" in page.text and TOKEN not in page.text
        for accept in ("*/*", "application/json", "application/json, text/html"):
            assert ask(path, accept).mimetype == "application/json"
    assert ask("/invocations", "text/html").mimetype == "application/json", (
        "no page: that is a program's habit"
    )


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_guard_knows_its_token(scheme: str) -> None:
    answer = Client(Guard(App(), TOKEN)).post("/invocations", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert answer.status_code == 200


def test_browsers_may_do_nothing_with_data_and_run_the_scripts_of_pages() -> None:
    client = Client(SecurityHeaders(App()))
    for path, page in (
        ("/invocations", False),
        ("/docs.json", False),
        ("/", True),
        ("/docs", True),
        ("/docs/a.js", True),
    ):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert ("default-src 'self'" in policy) is page
        assert "frame-ancestors 'none'" in policy and "*" not in policy
        assert headers.get("Cache-Control") == (None if page else "no-store")
    own = [("Cache-Control", "max-age=60"), ("content-security-policy", "default-src data:")]
    kept = Client(SecurityHeaders(App(headers=own))).get("/openapi.json").headers
    assert kept.getlist("Cache-Control") == ["max-age=60"]
    assert kept.getlist("Content-Security-Policy") == ["default-src data:"]


def test_cors_answers_the_origins_it_was_given_and_no_other() -> None:
    app = App()
    client = Client(Cors(app, [ORIGIN, "http://localhost:3000"]))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = client.options("/invocations", headers={"Origin": ORIGIN, **asked})
    assert (preflight.status_code, preflight.data, app.reached) == (204, b"", 0)
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in preflight.headers
    answer = client.post("/invocations", headers={"Origin": ORIGIN})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
    for origin in ("https://b.example", "http://a.example", f"{ORIGIN}.evil", f"{ORIGIN}:8443", "null", ""):
        for other in (
            client.post("/invocations", headers={"Origin": origin}),
            client.options("/invocations", headers={"Origin": origin, **asked}),
        ):
            assert not [name for name, _ in other.headers if name.startswith("Access-Control-")]
            assert other.headers["Vary"] == "Origin"


def test_a_request_id_is_the_callers_when_it_is_sane() -> None:
    client = Client(RequestLog(App()))
    assert client.get("/", headers={"X-Request-ID": "order-17/a"}).headers["X-Request-ID"] == "order-17/a"
    fresh = {client.get("/").headers["X-Request-ID"] for _ in range(3)}
    for odd in ("x" * 129, "two words", "ü", ""):
        fresh.add(client.get("/", headers={"X-Request-ID": odd}).headers["X-Request-ID"])
    assert len(fresh) == 7 and all(len(each) == 32 for each in fresh)


def test_a_line_per_request_says_what_was_asked_and_nothing_private() -> None:
    lines: list[bytes] = []
    client = Client(RequestLog(App("201 CREATED"), lines.append))
    client.post(
        "/invocations?token=hidden-1",
        data=b"hidden-2",
        headers={"Authorization": "Bearer hidden-3", "X-Request-ID": "mine"},
        environ_base={"REMOTE_ADDR": "10.1.2.3"},
        buffered=True,
    )
    client.get("/" + "ü\n" * 2000, buffered=True)
    assert b"hidden" not in b"".join(lines)
    line = json.loads(lines[0])
    assert line.pop("time").endswith("Z") and line.pop("duration_ms") >= 0
    assert line == {
        "method": "POST", "path": "/invocations", "status": 201, "rows": 3, "bytes": 2, "request_id": "mine",
        "remote": "10.1.2.3",
    }  # fmt: skip
    assert len(lines) == 2 and len(lines[1]) < 4096 and lines[1].count(b"\n") == 1


def test_an_app_that_fails_has_its_line_too() -> None:
    def broken(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise RuntimeError("out of order")

    lines: list[bytes] = []
    with pytest.raises(RuntimeError, match="out of order"):
        Client(RequestLog(broken, lines.append)).get("/x")
    assert (json.loads(lines[0])["status"], json.loads(lines[0])["path"]) == (500, "/x")


def _config(folder: Path, **more: Any) -> WebConfig:
    return web_config(folder, ModelRef(name="tiny", version="1", path=str(folder)), **more)


def test_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []
    monkeypatch.setattr(middleware.os, "write", lambda _, line: lines.append(line))
    (tmp_path / "token").write_text(TOKEN)
    config = _config(
        tmp_path, auth_token_file=str(tmp_path / "token"), cors_origins=(ORIGIN,), access_log=True
    )
    app = App()
    client = Client(middleware.compose(app, config))
    preflight = client.options(
        "/invocations", headers={"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}, buffered=True
    )
    refused = client.post("/invocations", headers={"Origin": ORIGIN}, buffered=True)
    allowed = {"Origin": ORIGIN, "Authorization": f"Bearer {TOKEN}"}
    answer = client.post("/invocations", headers=allowed, buffered=True)
    assert [a.status_code for a in (preflight, refused, answer)] == [204, 401, 200]
    assert app.reached == 1
    for each in (
        preflight,
        refused,
        answer,
    ):  # a page can read why it was refused, and every answer has its line
        assert each.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert each.headers["X-Frame-Options"] == "DENY" and each.headers["X-Request-ID"]
    assert [json.loads(line)["status"] for line in lines] == [204, 401, 200]
    assert [json.loads(line)["request_id"] for line in lines] == [
        each.headers["X-Request-ID"] for each in (preflight, refused, answer)
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_a_host_that_others_reach_needs_a_token_or_a_word(host: str) -> None:
    with pytest.raises(BadInput, match="auth_token_env=NAME .*insecure=true"):
        check_exposed(host, has_token=False, insecure=False)
    check_exposed(host, has_token=True, insecure=False)
    check_exposed(host, has_token=False, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_host_of_this_machine_alone_needs_neither(host: str) -> None:
    check_exposed(host, has_token=False, insecure=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file"), (b" \n", "is empty"), (b"two words", "spaces"), (b"\xff\xfe", "no text"),
     ("schlüssel".encode(), "beyond ASCII")],
)  # fmt: skip
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=said) as caught:
        check_config(_config(tmp_path, auth_token_file=str(file)))
    assert "two words" not in caught.value.message
    file.write_text(f"  {TOKEN}\r\n")
    assert read_token(file) == TOKEN


def test_a_certificate_and_its_key_go_together(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    other_cert, other_key = make_certificate(tmp_path, "other")
    assert (
        check_certificate(cert, key)
        == check_certificate(cert, key)
        != check_certificate(other_cert, other_key)
    )
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for wrong, said in (
        ((cert, None), "tls_cert needs tls_key too"),
        ((None, key), "tls_key needs tls_cert too"),
        ((cert, other_key), "cannot be used"),
        ((str(junk), key), "cannot be used"),
        ((cert, str(tmp_path / "none")), "tls_key=.*none' cannot be read"),
    ):
        with pytest.raises(BadInput, match=said):
            check_certificate(*wrong)
