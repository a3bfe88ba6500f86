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
from support.web import WebService, running_web, web_config

TOKEN = "s3cret-token-of-the-test"


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
