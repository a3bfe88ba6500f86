"""The Open Inference Protocol around tiny models: what it takes, what it refuses, and that it logs like the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from support.cores import SCHEMA, tiny_core

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.scoring import ScoredBatch, ScoringCore
from mlflow_flywheel.pipelines.web.app import create_app
from mlflow_flywheel.pipelines.web.batcher import Batcher
from mlflow_flywheel.pipelines.web.gate import Gate
from mlflow_flywheel.pipelines.web.metrics import WebMetrics
from mlflow_flywheel.pipelines.web.parsing import Parser
from mlflow_flywheel.pipelines.web.tensors import DATATYPES, prediction_tensors, read_tensors

INFER = "/v2/models/tiny/infer"
X = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1.5, -1.5]}
CITY = {"name": "city", "shape": [2, 1], "datatype": "BYTES", "data": [["Rome"], [None]]}


class KeptLog:
    def __init__(self) -> None:
        self.batches: list[ScoredBatch] = []

    def append(self, batch: ScoredBatch) -> None:
        self.batches.append(batch)


@pytest.fixture
def log() -> KeptLog:
    return KeptLog()


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> WebMetrics:
    return WebMetrics(str(tmp_path_factory.mktemp("metrics") / "status.json"), "tiny-web", "tiny", "1")


@pytest.fixture
def make(tmp_path: Path, log: KeptLog, metrics: WebMetrics) -> Iterator[Callable[..., FlaskClient]]:
    labels = FeedbackLog(tmp_path / "spool", "tiny", "double", source="web")

    def client(core: ScoringCore | None = None) -> FlaskClient:
        served = core or tiny_core(log)
        schema = served.scorer.schema
        app = create_app(
            served,
            Batcher(served, max_rows=64),
            Parser(schema, 100),
            labels=labels,
            gate=Gate(2, 2),
            metrics=metrics,
            max_body_bytes=20_000,
        )
        return app.test_client()

    yield client
    labels.close()


def core_of(schema: FeatureSchema, answer: Callable[[Any], Any], log: KeptLog) -> ScoringCore:
    """Return a core whose model answers as it is told, without an input example and outside the registry."""
    ref = ModelRef(name="loose", version="", model_id=None, path="")
    scorer = Scorer(ref, schema, lambda frame, params: (answer(frame), None), None, None, "double", None)
    return ScoringCore(scorer, deployment="loose-web", mode="web", log=log)


def test_tensors_are_scored_logged_and_answered_as_tensors(
    make: Callable[..., FlaskClient], log: KeptLog
) -> None:
    answer = make().post(INFER, json={"id": "req-1", "inputs": [X, CITY]})
    assert answer.status_code == 200, answer.text
    ids = list(log.batches[0].prediction_ids)
    assert answer.get_json() == {
        "id": "req-1",
        "model_name": "tiny",
        "model_version": "1",
        "outputs": [
            {"name": "predict", "datatype": "INT64", "shape": [2], "data": [1, 0]},
            {"name": "prediction_id", "datatype": "BYTES", "shape": [2], "data": ids},
        ],
    }
    assert log.batches[0].request.features.to_pydict() == {"x": [1.5, -1.5], "city": ["Rome", None]}
    assert log.batches[0].request.client_request_ids is None  # one id cannot name two rows


def test_the_request_id_names_a_single_row_unless_the_caller_says_better(
    make: Callable[..., FlaskClient], log: KeptLog
) -> None:
    one = [{**X, "shape": [1], "data": [1]}, {**CITY, "shape": [1], "data": ["Rome"]}]
    client = make()
    client.post(INFER, json={"id": "order-7", "inputs": one})
    client.post(INFER, json={"id": "r", "inputs": one, "parameters": {"client_request_id": "order-8"}})
    client.post(INFER, json={"inputs": [X, CITY], "parameters": {"client_request_id": ["a", "b"]}})
    client.post(INFER, json={"inputs": one, "parameters": {"event_time": "2013-01-01T00:00:00Z"}})
    asked = [batch.request for batch in log.batches]
    assert [request.client_request_ids for request in asked] == [["order-7"], ["order-8"], ["a", "b"], None]
    assert [str(time) for time in asked[3].event_times or []] == ["2013-01-01 00:00:00+00:00"]


def test_one_matrix_of_all_features_stands_for_them(make: Callable[..., FlaskClient], log: KeptLog) -> None:
    schema = FeatureSchema([Feature("a", "double"), Feature("b", "double")])
    client = make(core_of(schema, lambda frame: frame["a"] - 10 * frame["b"], log))
    for data in ([1, 2, 3, None], [[1, 2], [3, None]]):
        matrix = {"name": "anything", "shape": [2, 2], "datatype": "FP32", "data": data}
        answer = client.post("/v2/models/loose/infer", json={"inputs": [matrix]})
        assert answer.status_code == 200, answer.text
        assert answer.get_json()["outputs"][0]["data"] == [-19.0, None]  # NaN, as JSON has it
        assert "model_version" not in answer.get_json()
    matrix = {"name": "anything", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    refused = client.post("/v2/models/loose/infer", json={"inputs": [matrix]})
    assert refused.status_code == 400 and "[n, 2], in the order: a, b" in refused.get_json()["error"]
    assert client.get("/v2/models/loose/versions/1").status_code == 404


def test_outputs_can_be_chosen(make: Callable[..., FlaskClient], log: KeptLog) -> None:
    client = make()
    answer = client.post(INFER, json={"inputs": [X, CITY], "outputs": [{"name": "predict"}]})
    assert [output["name"] for output in answer.get_json()["outputs"]] == ["predict"]
    refused = client.post(INFER, json={"inputs": [X, CITY], "outputs": [{"name": "predicted"}]})
    assert refused.status_code == 400 and "did you mean 'predict'?" in refused.get_json()["error"]
    assert len(log.batches) == 1  # what is refused is not scored


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "it is a list"),
        ({}, "inputs must be a list of tensors"),
        ({"inputs": [5]}, "an input must be an object"),
        ({"id": 5, "inputs": [X, CITY]}, "id must be a string"),
        ({"inputs": [X]}, "'city' (string) is missing"),
        ({"inputs": [X, X]}, "there twice"),
        ({"inputs": [{**X, "shape": [3]}, CITY]}, "takes 3 values, data has 2"),
        ({"inputs": [{**X, "shape": [1], "data": [1]}, CITY]}, "different numbers of rows"),
        ({"inputs": [{**X, "shape": [1, 2]}, CITY]}, "send [n] or [n, 1] per feature"),
        ({"inputs": [{**X, "shape": [10**9, 0], "data": []}]}, "shape must be"),
        ({"inputs": [{**X, "shape": [True, 2]}, CITY]}, "shape must be"),
        ({"inputs": [{**X, "shape": [2] * 900}, CITY]}, "shape must be"),
        ({"inputs": [{**X, "datatype": "FP46"}, CITY]}, "did you mean 'FP64'?"),
        ({"inputs": [{**X, "data": ["1", "2"]}, CITY]}, "value 0 is no FP64: '1'"),
        ({"inputs": [{**X, "datatype": "INT8", "data": [1, 128]}, CITY]}, "value 1 is no INT8: 128"),
        ({"inputs": [{**X, "datatype": "INT8", "data": [1, 1.5]}, CITY]}, "value 1 is no INT8: 1.5"),
        ({"inputs": [{**X, "datatype": "BOOL", "data": [True, False]}, CITY]}, "'x' must be double"),
        ({"inputs": [{**X, "shape": [2, 1], "data": [[1, 2], []]}, CITY]}, "nested data"),
        ({"inputs": [{**X, "shape": [0], "data": []}, {**CITY, "shape": [0], "data": []}]}, "no rows"),
        (
            {"inputs": [{"name": "all", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]},
            "one tensor for",
        ),
        ({"inputs": [X, CITY], "parameters": 5}, "parameters must be an object"),
        ({"inputs": [X, CITY], "parameters": {"binary_data_output": True}}, "binary"),
        ({"inputs": [{**X, "data": None, "parameters": {"binary_data_size": 16}}, CITY]}, "binary"),
        (
            {"inputs": [X, CITY], "outputs": [{"name": "predict", "parameters": {"binary_data": True}}]},
            "binary",
        ),
        ({"inputs": [X, CITY], "outputs": ["predict"]}, "outputs must be a list"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_protocols_form(
    make: Callable[..., FlaskClient], log: KeptLog, body: Any, words: str
) -> None:
    answer = make().post(INFER, json=body)
    assert (answer.status_code, set(answer.get_json())) == (400, {"error"})
    assert words in answer.get_json()["error"]
    assert log.batches == []


def test_a_null_is_for_the_signature_to_judge(make: Callable[..., FlaskClient], log: KeptLog) -> None:
    schema = FeatureSchema([Feature("a", "double"), Feature("n", "long")])
    client = make(core_of(schema, lambda frame: frame["a"], log))

    def ask(a: Any, n: Any) -> Any:
        tensors = [
            {"name": "a", "shape": [1], "datatype": "INT32", "data": [a]},
            {"name": "n", "shape": [1], "datatype": "INT64", "data": [n]},
        ]
        return client.post("/v2/models/loose/infer", json={"inputs": tensors})

    assert ask(None, 1).status_code == 200
    refused = ask(1, None)
    assert refused.status_code == 400 and "long has no missing value" in refused.get_json()["error"]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Type": "application/octet-stream"}, "binary tensor data extension"),
        ({"Content-Type": "application/json", "Inference-Header-Content-Length": "10"}, "binary tensor"),
        ({"Content-Type": "text/csv"}, "V2 requests are application/json"),
        ({"Content-Type": "application/json; charset=latin-1"}, "only charset=utf-8"),
    ],
)
def test_other_kinds_of_bodies_are_a_415(
    make: Callable[..., FlaskClient], headers: dict[str, str], words: str
) -> None:
    answer = make().post(INFER, data=b'{"inputs": []}', headers=headers)
    assert answer.status_code == 415 and words in answer.get_json()["error"]


def test_the_same_bounds_hold(make: Callable[..., FlaskClient]) -> None:
    client = make()
    many = {"name": "x", "shape": [101], "datatype": "FP64", "data": [1] * 101}
    assert client.post(INFER, json={"inputs": [many]}).status_code == 422
    too_large = client.post(INFER, data=b" " * 30_000)
    assert (too_large.status_code, set(too_large.get_json())) == (413, {"error"})


def test_what_is_served_is_described(make: Callable[..., FlaskClient]) -> None:
    client = make()
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        assert client.get(path).get_json() == {
            "name": "tiny",
            "versions": ["1"],
            "platform": "mlflow_pyfunc",
            "inputs": [
                {"name": "x", "datatype": "FP64", "shape": [-1]},
                {"name": "city", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": "predict", "datatype": "FP64", "shape": [-1]},
                {"name": "prediction_id", "datatype": "BYTES", "shape": [-1]},
            ],
        }
        assert client.get(f"{path}/ready").get_json() == {"name": "tiny", "ready": True}
    assert set(client.get("/v2").get_json()) == {"name", "version", "extensions"}
    assert client.get("/v2/health/live").get_json() == {"live": True}
    assert client.get("/v2/health/ready").get_json() == {"ready": True}


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("get", "/v2/models/big", 404, "model 'big' is not served here; this is model tiny version 1"),
        ("get", "/v2/models/tiny/versions/2/ready", 404, "version '2' is not served here"),
        ("post", "/v2/models/tiny/versions/2/infer", 404, "version '2' is not served here"),
        ("get", INFER, 405, "not allowed"),
        ("get", "/v2/repository/index", 404, "not found"),
    ],
)
def test_wrong_addresses_are_named_in_the_protocols_form(
    make: Callable[..., FlaskClient], method: str, path: str, status: int, words: str
) -> None:
    answer = make().open(
        path, method=method.upper(), json={"inputs": [X, CITY]} if method == "post" else None
    )
    assert (answer.status_code, set(answer.get_json())) == (status, {"error"})
    assert words in answer.get_json()["error"]


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        ([True, False], ("predict", "BOOL", [2], [True, False])),
        ([1, None], ("predict", "INT64", [2], [1, None])),
        ([1, 2.5], ("predict", "FP64", [2], [1, 2.5])),
        (["a", float("nan")], ("predict", "BYTES", [2], ["a", None])),
        ([pd.Timestamp("2013-01-01")], ("predict", "BYTES", [1], ["2013-01-01 00:00:00"])),
        ([[0.25, 0.75], [0.5, 0.5]], ("predict", "FP64", [2, 2], [0.25, 0.75, 0.5, 0.5])),
        ([{"0": 1.5}], ("predict", "FP64", [1], [1.5])),
    ],
)
def test_answers_are_typed_as_the_model_gave_them(native: list[Any], expected: tuple[Any, ...]) -> None:
    (tensor,) = prediction_tensors(native)
    assert (tensor["name"], tensor["datatype"], tensor["shape"], tensor["data"]) == expected


def test_a_model_that_answers_columns_gives_a_tensor_for_each() -> None:
    tensors = prediction_tensors([{"prediction": 1, "why": "x"}, {"prediction": 0, "why": "y"}])
    assert [(t["name"], t["datatype"], t["data"]) for t in tensors] == [
        ("prediction", "INT64", [1, 0]),
        ("why", "BYTES", ["x", "y"]),
    ]


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_tensor = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "city", "all"]) | _json},
    optional={
        "shape": st.lists(st.integers(-1, 3), max_size=3) | _json,
        "datatype": st.sampled_from(DATATYPES) | _json,
        "data": st.lists(_json, max_size=3) | _json,
        "parameters": _json,
    },
)


@given(st.lists(_tensor | _json, max_size=3) | _json)
def test_tensors_of_any_kind_are_rows_or_refused(inputs: Any) -> None:
    try:
        columns, n = read_tensors(inputs, SCHEMA)
    except BadInput:
        return
    assert all(len(values) == n for values in columns.values())
