"""The web app around a tiny model: what callers get when it is busy, when it raises, and when bodies are odd."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask.testing import FlaskClient
from support.cores import SCHEMA, tiny_core
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.scoring import ScoredBatch, ScoringCore
from mlflow_flywheel.pipelines.web.app import create_app
from mlflow_flywheel.pipelines.web.batcher import Batcher
from mlflow_flywheel.pipelines.web.gate import Busy, Gate
from mlflow_flywheel.pipelines.web.metrics import WebMetrics
from mlflow_flywheel.pipelines.web.parsing import Parser

BODY = {"dataframe_records": [{"x": 1.0, "city": "Rome"}]}


class HeldLog:
    """A log that keeps what it gets; it lets nobody through while it is closed, and raises what it is told to."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.trouble: Exception | None = None
        self.batches: list[ScoredBatch] = []

    def append(self, batch: ScoredBatch) -> None:
        self.open.wait(20)
        if self.trouble is not None:
            raise self.trouble
        self.batches.append(batch)


@pytest.fixture
def log() -> HeldLog:
    return HeldLog()


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> WebMetrics:
    return WebMetrics(str(tmp_path_factory.mktemp("metrics") / "status.json"), "tiny-web", "tiny", "1")


@pytest.fixture
def make(tmp_path: Path, log: HeldLog, metrics: WebMetrics) -> Iterator[Callable[..., FlaskClient]]:
    labels = FeedbackLog(tmp_path / "spool", "tiny", "double", source="web")

    def client(gate: Gate | None = None, core: ScoringCore | None = None) -> FlaskClient:
        served = core or tiny_core(log)
        app = create_app(
            served,
            Batcher(served, max_rows=64),
            Parser(SCHEMA, 100),
            labels=labels,
            gate=gate or Gate(2, 2),
            metrics=metrics,
            max_body_bytes=20_000,
        )
        return app.test_client()

    yield client
    labels.close()


def test_an_answer_is_made_only_after_its_rows_are_in_the_log(
    make: Callable[..., FlaskClient], log: HeldLog
) -> None:
    answer = make().post("/invocations", json=BODY)
    assert answer.status_code == 200
    assert answer.get_json()["prediction_ids"] == list(log.batches[0].prediction_ids)
    log.trouble = Unavailable("the disk of the spool is full")
    refused = make().post("/invocations", json=BODY)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert refused.get_json() == {
        "error_code": "TEMPORARILY_UNAVAILABLE",
        "message": "the disk of the spool is full",
    }


def test_beyond_the_queue_callers_are_told_to_come_back(
    make: Callable[..., FlaskClient], log: HeldLog
) -> None:
    gate = Gate(1, 1)
    client = make(gate)
    log.open.clear()
    answers: list[int] = []
    callers = [
        threading.Thread(target=lambda: answers.append(client.post("/invocations", json=BODY).status_code))
        for _ in range(2)
    ]
    for caller in callers:
        caller.start()

    def full() -> bool:
        try:
            gate.enter(1)
        except Busy:
            return True
        gate.leave(1)
        return False

    eventually(full)
    refused = client.post("/invocations", json=BODY)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert refused.get_json()["error_code"] == "RESOURCE_EXHAUSTED"
    assert "max_queue" in refused.get_json()["message"]
    assert client.get("/ping").status_code == 200
    log.open.set()
    for caller in callers:
        caller.join(20)
    assert answers == [200, 200]
    assert client.post("/invocations", json=BODY).status_code == 200


def test_waiting_bodies_have_bounded_room() -> None:
    gate = Gate(2, 100, max_body_bytes=50 * 1024 * 1024)
    half = 50 * 1024 * 1024
    gate.enter(half)
    gate.enter(half)
    with pytest.raises(Busy, match="all the room"):
        gate.enter(1)
    gate.leave(half)
    gate.leave(half)
    gate.enter(2 * half)


def test_a_large_body_is_too_large_not_too_many(make: Callable[..., FlaskClient]) -> None:
    answer = make().post("/invocations", environ_overrides={"CONTENT_LENGTH": str(10**12)})
    assert answer.status_code == 413


@pytest.mark.parametrize("trouble", [RuntimeError("secret/path.py"), KeyError("x")])
def test_a_mistake_of_ours_shows_no_traceback(
    make: Callable[..., FlaskClient], log: HeldLog, trouble: Exception
) -> None:
    log.trouble = trouble
    answer = make().post("/invocations", json=BODY)
    assert (answer.status_code, answer.get_json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert "Traceback" not in answer.text and "secret" not in answer.text


def test_a_model_that_raises_is_an_internal_error_in_its_own_words(
    make: Callable[..., FlaskClient], log: HeldLog
) -> None:
    def broken(frame: Any, params: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    ref = ModelRef(name="tiny", version="1", model_id=None, path="")
    scorer = Scorer(ref, SCHEMA, broken, None, None, "double", None)
    core = ScoringCore(scorer, deployment="tiny-web", mode="web", log=log)
    answer = make(core=core).post("/invocations", json=BODY)
    assert answer.status_code == 500
    assert answer.get_json() == {
        "error_code": "INTERNAL_ERROR",
        "message": "model tiny version 1 raised ZeroDivisionError: division by zero",
    }
    assert log.batches == []


def _odd_bodies() -> list[bytes]:
    rows: list[Any] = [{"x": 1.0, "city": "Rome"}]
    values: list[Any] = [
        None,
        5,
        "a",
        True,
        [],
        {},
        [[]],
        [{}],
        [None],
        {"x": []},
        {"x": [[1]], "city": [{}]},
    ]
    formats = ["dataframe_split", "dataframe_records", "instances", "inputs"]
    bodies: list[Any] = values + [{name: value} for name in formats for value in values]
    for key in ("client_request_id", "event_time", "params"):
        bodies += [
            {"dataframe_records": rows, key: value}
            for value in [*values, 10**18, -1e300, "0001-01-01T00:00+14:00"]
        ]
    bodies += [
        {"dataframe_split": {"columns": names, "data": [[1, "a"]]}}
        for names in (["x", "x"], [1], "x", None, {})
    ]
    return [orjson.dumps(body) for body in bodies] + [
        b"", b"\xff", b"[" * 15_000, b'{"instances":' + b"[" * 15_000, b'{"instances":[{"x":1,"city":"\\ud800"}]}',
        b'{"instances":[{"x":1' + b"0" * 5_000 + b',"city":""}]}',
    ]  # fmt: skip


def test_no_json_body_makes_the_service_fail(make: Callable[..., FlaskClient]) -> None:
    client = make()
    for path in ("/invocations", "/feedback"):
        for body in _odd_bodies():
            answer = client.post(path, data=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400), (path, body[:200], answer.text)


def _parquet_of_bytes(name: str) -> bytes:
    """Return a Parquet file whose texts are not UTF-8."""
    offsets, text = pa.py_buffer(np.array([0, 1], np.int32).tobytes()), pa.py_buffer(b"\xff")
    broken = pa.StringArray.from_buffers(1, offsets, text)
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1.0], name: broken}), file)
    return bytes(file.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv", b"\x94\x1a\x8e\r\xfff\x9d"),
        ("text/csv", b"x,city\n1,\xff\n"),
        ("application/x-parquet", _parquet_of_bytes("city")),
        ("application/x-parquet", _parquet_of_bytes("city").replace(b"city", b"\xffity")),
    ],
)
def test_texts_that_are_not_utf8_are_refused(
    make: Callable[..., FlaskClient], content_type: str, body: bytes
) -> None:
    answer = make().post("/invocations", data=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.get_json()["error_code"]) == (400, "BAD_REQUEST"), answer.text
