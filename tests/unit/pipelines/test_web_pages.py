"""What a service says of itself: its OpenAPI document, the page to try it out, and its first page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from support.cores import tiny_core

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.scoring import NullLog, ScoringCore
from mlflow_flywheel.pipelines.web.app import create_app
from mlflow_flywheel.pipelines.web.batcher import Batcher
from mlflow_flywheel.pipelines.web.gate import Gate
from mlflow_flywheel.pipelines.web.guard import OPEN_PATHS
from mlflow_flywheel.pipelines.web.metrics import WebMetrics
from mlflow_flywheel.pipelines.web.openapi import document
from mlflow_flywheel.pipelines.web.parsing import Parser

SCRIPT = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def make_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[ScoringCore], Flask]]:
    folder = tmp_path_factory.mktemp("pages")
    labels = FeedbackLog(folder / "spool", "tiny", "double", source="web")
    metrics = WebMetrics(str(folder / "status.json"), "tiny-web", "tiny", "1")

    def make(core: ScoringCore) -> Flask:
        return create_app(
            core,
            Batcher(core, max_rows=64),
            Parser(core.scorer.schema, 100),
            labels=labels,
            gate=Gate(2, 2),
            metrics=metrics,
            max_body_bytes=20_000,
            mlflow_version="3.17.2",
        )

    yield make
    labels.close()


@pytest.fixture(scope="module")
def app(make_app: Callable[[ScoringCore], Flask]) -> Flask:
    return make_app(tiny_core(NullLog()))


@pytest.fixture(scope="module")
def client(app: Flask) -> FlaskClient:
    return app.test_client()


class Texts(HTMLParser):
    """The texts of elements by id, every tag, and every address that the page loads or links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.by_id: dict[str, str] = {}
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._open: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name in ("src", "href") if (value := named.get(name))]
        self._open = named.get("id")

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.by_id[self._open] = self.by_id.get(self._open, "") + data


def test_every_route_is_in_the_document(app: Flask, client: FlaskClient) -> None:
    paths = client.get("/openapi.json").get_json()["paths"]
    described = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    routed = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith(("/docs/", "/static/"))
    }
    assert described == routed


def test_every_example_of_the_document_is_accepted(client: FlaskClient) -> None:
    document = client.get("/openapi.json").get_json()
    served = {"{model_name}": "tiny", "{model_version}": "1"}
    asked = 0
    for path, methods in document["paths"].items():
        for kind, body in methods.get("post", {}).get("requestBody", {}).get("content", {}).items():
            examples = [each["value"] for each in body.get("examples", {}).values()]
            for example in [*examples, *([body["example"]] if "example" in body else [])]:
                address = re.sub(r"{\w+}", lambda found: served[found.group()], path)
                sent = {"json": example} if kind == "application/json" else {"data": example}
                answer = client.post(address, content_type=kind, **sent)
                assert answer.status_code == 200, (address, example, answer.text)
                asked += 1
    assert asked == 8  # four forms of JSON, CSV, feedback, V2 twice


def test_every_reference_of_the_document_is_defined(client: FlaskClient) -> None:
    text = client.get("/openapi.json").text
    document = client.get("/openapi.json").get_json()
    used = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert used == set(document["components"]["schemas"])


def test_a_secured_service_says_who_needs_the_token() -> None:
    described = document(tiny_core(NullLog()), secured=True)
    assert described["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    needing = {
        path
        for path, methods in described["paths"].items()
        for operation in methods.values()
        if operation.get("security") == [{"token": []}] and "401" in operation["responses"]
    }
    assert set(described["paths"]) - needing == OPEN_PATHS


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(client: FlaskClient, path: str) -> None:
    answer = client.get(path, headers={"Accept": "text/html"})
    page = Texts(answer.text)
    assert not [address for address in page.addresses if ":" in address and not address.startswith("data:")]
    assert answer.headers["Content-Security-Policy"].startswith("default-src '")
    for address in page.addresses:
        if not address.startswith("data:"):
            assert client.get(f"/{address}").status_code == 200, address


def test_the_docs_serve_their_own_files_only(client: FlaskClient) -> None:
    assert client.get("/docs/").headers["Location"] == "../docs"
    assert client.get("/docs/index.html").status_code == 404
    assert client.get("/docs/../app.py").status_code == 404
    assert "petstore" not in client.get("/docs/start.js").text


def test_the_first_page_says_what_answers(client: FlaskClient) -> None:
    about = client.get("/", headers={"Accept": "application/json"}).get_json()
    assert about["features"] == [
        {"name": "x", "type": "double", "required": True},
        {"name": "city", "type": "string", "required": True},
    ]
    assert (about["deployment"], about["model_name"], about["model_version"]) == ("tiny-web", "tiny", "1")
    for link in about["links"].values():
        assert client.get(link).status_code == 200
    page = client.get("/", headers={"Accept": "*/*"})
    assert page.mimetype == "text/html"
    for word in ("tiny-web", "tiny</b> version <b>1", "made up", "double", about["since"]):
        assert word in page.text


def test_no_name_becomes_markup_or_shell(make_app: Callable[[ScoringCore], Flask]) -> None:
    def answer(frame: Any, params: Any) -> Any:
        return frame.iloc[:, 0].str.len(), None

    ref = ModelRef(name=SCRIPT, version="1", model_id=None, path="")
    schema = FeatureSchema([Feature(SCRIPT + "'; touch owned; '", "string")])
    core = ScoringCore(
        Scorer(ref, schema, answer, None, None, "double", None), deployment=SCRIPT, mode="web", log=NullLog()
    )
    client = make_app(core).test_client()
    for path in ("/", "/docs"):
        page = client.get(path, headers={"Accept": "text/html"}).text
        assert SCRIPT not in page and "&lt;script&gt;" in page
    shown = Texts(client.get("/", headers={"Accept": "text/html"}).text)
    assert "script" not in shown.tags
    assert "'\"'\"'; touch owned; '\"'\"'" in shown.by_id["curl"]
