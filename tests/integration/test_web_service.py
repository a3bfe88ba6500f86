"""A web deployment as its callers see it: the real master, real workers, a real model."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from support.models import ZooModel
from support.waiting import eventually
from support.web import WebService, running_web, web_config

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.config import WebConfig, load_config
from mlflow_flywheel.pipelines.inference_table import InferenceTable


@pytest.fixture(scope="module")
def model(zoo: Callable[[str], ZooModel]) -> ZooModel:
    return zoo("mixed")


@pytest.fixture(scope="module")
def service(model: ZooModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    folder = tmp_path_factory.mktemp("web")
    config = web_config(folder, model.ref, workers=2, max_rows=100, max_body_bytes=20_000, id_column="order")
    with running_web(config, folder) as running:
        running.wait_serving(model.ref.version, 2)
        yield running


def _table(service: WebService) -> InferenceTable:
    tables = str(service.folder / "tables")
    committer = Committer(service.folder / "spool", tables)
    while committer.commit_once().segments:
        pass
    return InferenceTable.open(tables, "zoo-mixed")


def test_answers_are_pyfuncs_answers_and_are_in_the_table(service: WebService, model: ZooModel) -> None:
    import mlflow.pyfunc

    rows = model.rows.head(20)
    records = json.loads(rows.to_json(orient="records"))
    expected = np.asarray(mlflow.pyfunc.load_model(model.ref.path).predict(rows)).tolist()
    keys = [f"order-{i}" for i in range(20)]
    bodies = [
        {"json": {"dataframe_records": records, "client_request_id": keys}},
        {"json": {"dataframe_split": json.loads(rows.to_json(orient="split", index=False))}},
        {"data": rows.to_csv(index=False).encode(), "headers": {"Content-Type": "text/csv"}},
        {"data": rows.to_parquet(index=False), "headers": {"Content-Type": "application/x-parquet"}},
    ]
    ids: list[str] = []
    for body in bodies:
        answer = requests.post(f"{service.url}/invocations", timeout=30, **body).json()
        assert answer["predictions"] == expected
        ids += answer["prediction_ids"]
    label = {"client_request_id": "order-3", "label": True}
    assert requests.post(f"{service.url}/feedback", json={"feedback": [label]}, timeout=30).json() == {
        "accepted": 1
    }

    def logged() -> list[dict[str, object]]:
        rows = _table(service).read().to_pylist()
        assert {row["prediction_id"] for row in rows} >= set(ids)
        assert any(row["label"] is not None for row in rows)
        return rows

    mine = [row for row in eventually(logged) if row["prediction_id"] in ids]
    assert len(mine) == len(ids) == 80
    by_id = {row["prediction_id"]: row for row in mine}
    assert [by_id[name]["prediction"] for name in ids] == expected * 4
    assert [by_id[name]["client_request_id"] for name in ids[:20]] == keys
    assert [row["client_request_id"] for row in mine if row["label"] == 1.0] == ["order-3"]
    assert {row["mode"] for row in mine} == {"web"}


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"data": b"{", "headers": {}}, 400, "not JSON"),
        ({"json": {"dataframe_records": [{"carrier": 5}]}}, 400, "'carrier' must be string"),
        ({"json": {"dataframe_records": [{}]}}, 400, "is missing"),
        ({"json": {"instances": [[None] * 4]}}, 400, "is null, but long has no missing value"),
        ({"data": b"x", "headers": {"Content-Type": "text/html"}}, 415, "not supported"),
        ({"data": b"a,b\n" * 40, "headers": {"Content-Type": "text/csv"}}, 400, "is missing"),
        ({"data": b" " * 30_000, "headers": {"Content-Type": "application/json"}}, 413, "max_body_bytes"),
        ({"json": {"inputs": {"carrier": ["AA"] * 101}}}, 422, "max_rows"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    service: WebService, sent: dict[str, object], status: int, words: str
) -> None:
    response = requests.post(f"{service.url}/invocations", timeout=30, **sent)  # type: ignore[arg-type]
    assert (response.status_code, set(response.json())) == (status, {"error_code", "message"})
    assert words in response.json()["message"]
    assert "Traceback" not in response.text


def test_a_body_of_unknown_length_is_bounded_too(service: WebService, model: ZooModel) -> None:
    def chunks(n: int) -> Iterator[bytes]:
        yield json.dumps(
            {"dataframe_records": json.loads(model.rows.head(1).to_json(orient="records"))}
        ).encode()
        for _ in range(n):
            yield b" " * 1_000

    headers = {"Content-Type": "application/json"}
    for n, status in ((5, 200), (50, 413)):
        answer = requests.post(f"{service.url}/invocations", data=chunks(n), headers=headers, timeout=30)
        assert answer.status_code == status


def test_callers_that_send_slowly_hold_up_nobody(service: WebService, model: ZooModel) -> None:
    address = urlsplit(service.url)
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    records = json.loads(model.rows.head(1).to_json(orient="records"))
    with ExitStack() as slow:
        for _ in range(3 * 8):  # more than both workers' threads
            caller = socket.create_connection((str(address.hostname), int(address.port or 0)))
            slow.enter_context(caller).sendall(head)
        for _ in range(5):
            answer = requests.post(
                f"{service.url}/invocations", json={"dataframe_records": records}, timeout=10
            )
            assert answer.status_code == 200


def test_values_at_the_ends_of_their_types_reach_the_table(service: WebService) -> None:
    row = {
        "carrier": "\u0000\U0001f6eb",
        "distance": 2**62 + 1,
        "temp": -1e308,
        "holiday": True,
        "order": "edge",
    }
    body = {"dataframe_records": [row] * 2, "event_time": ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]}
    answer = requests.post(f"{service.url}/invocations", json=body, timeout=30)
    assert answer.status_code == 200

    def logged() -> list[dict[str, object]]:
        return [row for row in _table(service).read().to_pylist() if row["client_request_id"] == "edge"]

    rows = eventually(logged)
    assert {row["prediction_id"] for row in rows} == set(answer.json()["prediction_ids"])
    assert [row["feature.distance"] for row in rows] == [float(2**62)] * 2


def test_the_other_routes(service: WebService) -> None:
    assert requests.get(f"{service.url}/ping", timeout=30).status_code == 200
    assert requests.get(f"{service.url}/health", timeout=30).status_code == 200
    assert requests.get(f"{service.url}/version", timeout=30).text.count(".") == 2
    assert requests.get(f"{service.url}/invocations", timeout=30).status_code == 405
    assert requests.get(f"{service.url}/nothing", timeout=30).status_code == 404
    bad = requests.post(f"{service.url}/feedback", json=[{"prediction_id": "p"}], timeout=30)
    assert (bad.status_code, bad.json()["message"]) == (400, "feedback row 0: label is missing")
    described = requests.get(f"{service.url}/openapi.json", timeout=30).json()
    body = described["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    for form in body["examples"].values():
        assert requests.post(f"{service.url}/invocations", json=form["value"], timeout=30).status_code == 200


def test_counts_are_right_over_all_workers(service: WebService) -> None:
    def counted() -> float:
        text = requests.get(f"{service.url}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith("flywheel_web_requests_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'status="415"' in line)

    before = counted()
    for _ in range(20):
        requests.post(f"{service.url}/invocations", data=b"x", headers={"Content-Type": "a/b"}, timeout=30)
    assert counted() == before + 20


def test_gauges_are_of_the_living_and_of_what_waits(service: WebService, model: ZooModel) -> None:
    def gauges() -> dict[str, float]:
        text = requests.get(f"{service.url}/metrics", timeout=30).text
        found = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in found}

    labels = f'deployment="late-web",model_id="{model.ref.model_id or ""}",model_name="{model.ref.name}"'
    info = f'flywheel_web_model_info{{{labels},model_version="{model.ref.version}",variant="champion"}}'
    spool = f'{{model_name="{model.ref.name}"}}'
    before = gauges()
    assert before[info] == 1.0 and before[f"flywheel_rows_lost{spool}"] == 0.0
    body = {"dataframe_records": json.loads(model.rows.head(1).to_json(orient="records"))}
    assert requests.post(f"{service.url}/invocations", json=body, timeout=30).status_code == 200
    after = gauges()
    assert after[f"flywheel_spool_bytes{spool}"] > before[f"flywheel_spool_bytes{spool}"]
    eventually(lambda: gauges()[f"flywheel_spool_lag_seconds{spool}"] > 0)
    waiting = [value for name, value in after.items() if name.startswith("flywheel_web_waiting_requests")]
    assert waiting == [0.0]


def test_another_address_is_refused_while_serving(service: WebService, model: ZooModel) -> None:
    before = service.config_file.read_bytes()
    load_config(WebConfig, service.config_file).model_copy(update={"port": 5}).save(service.config_file)
    service.process.send_signal(signal.SIGHUP)
    failed = eventually(lambda: service.status().failed)
    assert failed is not None and "cannot become http://127.0.0.1:5 while it serves" in failed.error
    service.config_file.write_bytes(before)
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: service.status().failed is None)
    service.wait_serving(model.ref.version, 2)


def test_a_port_in_use_is_named(model: ZooModel, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_web(web_config(tmp_path, model.ref, port=port), tmp_path) as service:
            assert service.process.wait(30) == 1
        assert f"port {port} on 127.0.0.1 cannot be listened on" in (tmp_path / "web.log").read_text()
