"""A web deployment that strangers can reach: the real master with a token, a certificate and everything that watches."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from support.certificates import make_certificate
from support.models import ZooModel
from support.waiting import eventually
from support.web import WebService, running_web, web_config

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.inference_table import InferenceTable

TOKEN = "s3cret-token-of-the-test"
ORIGIN = "https://a.example"


@dataclass
class Safe:
    """A running service and how to ask it."""

    service: WebService
    body: dict[str, Any]
    cert: str

    def ask(self, method: str, path: str, token: str | None = TOKEN, **more: Any) -> requests.Response:
        headers = {**more.pop("headers", {})} | ({"Authorization": f"Bearer {token}"} if token else {})
        return requests.request(
            method, self.service.url + path, headers=headers, verify=self.cert, timeout=30, **more
        )


@pytest.fixture(scope="module")
def safe(zoo: Callable[[str], ZooModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Safe]:
    folder = tmp_path_factory.mktemp("safe")
    model = zoo("mixed")
    cert, key = make_certificate(folder)
    (folder / "token").write_text(f"{TOKEN}\n")
    config = web_config(
        folder,
        model.ref,
        host="0.0.0.0",
        auth_token_file=str(folder / "token"),
        tls_cert=cert,
        tls_key=key,
        cors_origins=(ORIGIN,),
        access_log=True,
        log_exclude=("carrier", "temp"),
    )
    rows = json.loads(model.rows.head(2).to_json(orient="records"))
    with running_web(config, folder) as service:
        service.wait_serving(model.ref.version, 1)
        yield Safe(service, {"dataframe_records": rows}, cert)


def test_only_callers_with_the_token_are_answered(safe: Safe) -> None:
    assert safe.service.url.startswith("https://127.0.0.1:")
    assert safe.ask("POST", "/invocations", json=safe.body).status_code == 200
    refused = safe.ask("POST", "/invocations", token="wrong", json={"pad": "x" * 500_000})
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert refused.json()["error_code"] == "UNAUTHENTICATED"
    assert safe.ask("GET", "/metrics", token=None).status_code == 401
    assert safe.ask("GET", "/metrics").status_code == 200
    assert safe.ask("GET", "/ping", token=None).status_code == 200


def test_a_page_of_an_allowed_origin_may_ask(safe: Safe) -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    preflight = safe.ask("OPTIONS", "/invocations", token=None, headers=asked)
    assert (preflight.status_code, preflight.headers["Access-Control-Allow-Origin"]) == (204, ORIGIN)
    answer = safe.ask("POST", "/invocations", json=safe.body, headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert answer.headers["Cache-Control"] == "no-store" and answer.headers["X-Frame-Options"] == "DENY"


def test_each_request_has_its_line_and_the_token_is_in_none(safe: Safe) -> None:
    safe.ask("POST", "/invocations?x=hidden", json=safe.body, headers={"X-Request-ID": "good-1"})
    assert safe.ask("GET", "/none", token="wrong-token", headers={"X-Request-ID": "bad-1"}).status_code == 401

    def lines() -> dict[str, dict[str, Any]]:
        log = (safe.service.folder / "web.log").read_text().splitlines()
        found = [json.loads(line) for line in log if line.startswith("{")]
        return {line["request_id"]: line for line in found}

    good = eventually(lambda: lines().get("good-1"), what="the line of the request")
    bad = eventually(lambda: lines().get("bad-1"), what="the line of the refusal")
    assert (good["status"], good["rows"], good["path"], good["remote"]) == (
        200,
        2,
        "/invocations",
        "127.0.0.1",
    )
    assert (bad["status"], bad["rows"]) == (401, None) and good["bytes"] > 0
    written = [file for file in safe.service.folder.rglob("*") if file.is_file() and file.name != "token"]
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]


def test_excluded_features_are_not_in_the_table(safe: Safe) -> None:
    ids = safe.ask("POST", "/invocations", json=safe.body).json()["prediction_ids"]
    tables = str(safe.service.folder / "tables")
    committer = Committer(safe.service.folder / "spool", tables)

    def logged() -> list[dict[str, Any]]:
        committer.commit_once()
        table = InferenceTable.open(tables, "zoo-mixed")
        rows = table.read().to_pylist() if table.exists else []
        return [row for row in rows if row["prediction_id"] in ids]

    rows = eventually(logged, what="the rows are in the table")
    assert [(row["feature.carrier"], row["feature.temp"]) for row in rows] == [(None, None)] * 2
    given = safe.body["dataframe_records"]
    assert sorted(row["feature.distance"] for row in rows) == sorted(row["distance"] for row in given)


def test_no_old_tls_and_no_plain_http(safe: Safe) -> None:
    address = urlsplit(safe.service.url)
    place = (str(address.hostname), int(address.port or 0))
    with pytest.raises(requests.RequestException):
        requests.get(f"http://{place[0]}:{place[1]}/ping", timeout=10)
    trusting = ssl.create_default_context(cafile=safe.cert)
    with socket.create_connection(place) as raw, trusting.wrap_socket(raw, server_hostname=place[0]) as tls:
        assert tls.version() == "TLSv1.3"
    trusting.minimum_version = trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(place) as raw, trusting.wrap_socket(raw, server_hostname=place[0]) as tls:
        assert tls.version() == "TLSv1.2"


def test_a_service_open_to_all_does_not_start(zoo: Callable[[str], ZooModel], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "auth_token_env=NAME .*insecure=true"),
        ({"auth_token_file": str(tmp_path / "none")}, "token file .*none' cannot be read: No such file"),
    ]
    for more, said in cases:
        with running_web(web_config(tmp_path, zoo("mixed").ref, host="0.0.0.0", **more), tmp_path) as service:
            assert service.process.wait(30) == 1
        log = (tmp_path / "web.log").read_text()
        assert re.search(said, log), log
