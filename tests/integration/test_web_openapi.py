"""The running service against its own OpenAPI document: whatever is sent, it keeps to what it says."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from schemathesis.core.failures import FailureGroup
from support.browser import chromium
from support.models import ZooModel, mixed_frame
from support.web import WebService, running_web, web_config

FRAME = mixed_frame(3, seed=11)
EXAMPLES = 40

schemathesis.openapi.media_type(
    "text/csv", st.just(FRAME.to_csv(index=False).encode()) | st.binary(max_size=40)
)
schemathesis.openapi.media_type(
    "application/x-parquet", st.just(FRAME.to_parquet(index=False)) | st.binary(max_size=40)
)


@pytest.fixture(scope="module")
def service(zoo: Callable[[str], ZooModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    model = zoo("mixed")
    folder = tmp_path_factory.mktemp("openapi")
    with running_web(web_config(folder, model.ref), folder) as running:
        running.wait_serving(model.ref.version, 1)
        yield running


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_service_keeps_to_its_document(service: WebService, mode: GenerationMode) -> None:
    """No 5xx; statuses, content types, headers and bodies as described; what does not fit is refused."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    broken: list[str] = []
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
                continue
            try:
                _ask_anything(operation, mode, session)
            except FailureGroup as error:
                broken.append(f"{operation.label}: {error}")
    assert not broken, "\n\n".join(broken)


def _ask_anything(
    operation: schemathesis.APIOperation, mode: GenerationMode, session: requests.Session
) -> None:
    # whether rows fit each other and the model is more than a schema can say
    excluded = [positive_data_acceptance] if operation.body else []

    @given(case=operation.as_strategy(mode))
    @settings(
        max_examples=EXAMPLES if operation.body else 3,
        derandomize=True,
        deadline=None,
        report_multiple_bugs=False,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(session=session, excluded_checks=excluded, timeout=30)

    ask()


def _shown(service: WebService, name: str) -> str:
    """Return what the first page shows in the element of this id, as someone would copy it."""
    page = requests.get(service.url, headers={"Accept": "text/html"}, timeout=30).text
    found = re.search(f'<pre[^>]* id="{name}">(.*?)</pre>', page, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])


def test_what_the_first_page_shows_works_as_it_is(service: WebService) -> None:
    curl = subprocess.run(
        ["bash", "-c", _shown(service, "curl")], capture_output=True, check=True, timeout=60
    )
    python = subprocess.run(
        [sys.executable, "-c", _shown(service, "python")], capture_output=True, check=True, timeout=60
    )
    assert b'"predictions":[' in curl.stdout
    assert b"'predictions': [" in python.stdout


def test_the_docs_work_in_a_browser_without_the_internet(service: WebService) -> None:
    with chromium() as browser:
        page = browser.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(service.url)
        page.click("text=/docs")
        page.click("#operations-MLflow-invocations .opblock-summary")
        page.click(".execute")
        page.wait_for_selector(".live-responses-table tbody .response-col_status")
        assert page.inner_text(".live-responses-table tbody .response-col_status").split()[0] == "200"
        assert [url for url in asked if not url.startswith((service.url, "data:"))] == []
        assert complaints == []
