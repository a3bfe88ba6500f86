"""A caller of `mlflow models serve` can be pointed at a web deployment: the same requests go to both, for real.

SAME is answered alike, REFUSED is refused alike, and BETTER is where we differ on purpose, with both answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from support.mlflow_serving import mlflow_serving, wait_answering
from support.models import ZooModel, mixed_frame
from support.web import running_web, web_config

ROW: dict[str, Any] = {"carrier": "AA", "distance": 1000, "temp": 50.0, "holiday": True}
OTHER: dict[str, Any] = {"carrier": "UA", "distance": 200, "temp": 31.5, "holiday": False}
NAMES, VALUES = list(ROW), list(ROW.values())
FRAME = mixed_frame(40, seed=7)
RECORDS = json.loads(FRAME.to_json(orient="records"))
COMPLETE = [record for record in RECORDS if record["carrier"] is not None]
CSV = "carrier,distance,temp,holiday\n"


@dataclass(frozen=True)
class Sides:
    """The two servers of one model."""

    mlflow: str
    ours: str

    def ask(self, path: str = "/invocations", method: str = "POST", **sent: Any) -> tuple[Any, Any]:
        """Send the same request to both; return MLflow's response and ours."""
        mlflow, ours = (
            requests.request(method, f"{url}{path}", timeout=30, **sent) for url in (self.mlflow, self.ours)
        )
        return mlflow, ours


@pytest.fixture(scope="module")
def sides(zoo: Callable[[str], ZooModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    model = zoo("mixed")
    folder: Path = tmp_path_factory.mktemp("contract")
    with (
        mlflow_serving(model.ref.path, folder) as mlflow,
        running_web(web_config(folder, model.ref), folder) as ours,
    ):
        ours.wait_serving(model.ref.version, 1)
        wait_answering(mlflow)
        yield Sides(mlflow, ours.url)


def record(**changes: Any) -> dict[str, Any]:
    return {"json": {"dataframe_records": [{**ROW, **changes}, OTHER]}}


def without(name: str) -> dict[str, Any]:
    return {"json": {"dataframe_records": [{key: ROW[key] for key in NAMES if key != name}]}}


def typed(content_type: str, body: str | bytes = json.dumps({"dataframe_records": [ROW]})) -> dict[str, Any]:
    return {"data": body, "headers": {"Content-Type": content_type}}


SAME: dict[str, dict[str, Any]] = {
    "split": {"json": {"dataframe_split": json.loads(FRAME.to_json(orient="split"))}},
    "split in another order": {"json": {"dataframe_split": {"columns": NAMES[::-1], "data": [VALUES[::-1]]}}},
    "records": {"json": {"dataframe_records": RECORDS}},
    "instances": {"json": {"instances": COMPLETE}},
    "inputs of columns": {"json": {"inputs": {name: [ROW[name], OTHER[name]] for name in NAMES}}},
    "inputs of scalars": {"json": {"inputs": ROW}},
    "inputs of records": {"json": {"inputs": [ROW, OTHER]}},
    "csv": typed("text/csv", FRAME.to_csv(index=False)),
    "csv in another order, one column more": typed(
        "text/csv", "temp,holiday,more,carrier,distance\n50.0,True,x,AA,1000\n"
    ),
    "csv with a charset": typed("text/csv; charset=utf-8", f"{CSV}AA,1000,50.0,true\n"),
    "parquet": typed("application/vnd.apache.parquet", FRAME.to_parquet(index=False)),
    "params": {"json": {"dataframe_records": [ROW], "params": {"unknown": 1}}},
    "no params": {"json": {"dataframe_records": [ROW], "params": {}}},
    "an unknown key": {"json": {"dataframe_records": [ROW], "more": 1}},
    "an extra column": record(more=1),
    "an integer for a double": record(temp=50),
    "a whole double for an integer": record(distance=1000.0),
    "a null in a double column": record(temp=None),
    "a null in a string column": record(carrier=None),
    "NaN": typed("application/json", json.dumps({"dataframe_records": [{**ROW, "temp": float("nan")}]})),
    "charset": typed("application/json; charset=utf-8"),
    "charset in capitals": typed("application/json; charset=UTF-8"),
}


@pytest.mark.parametrize("name", SAME)
def test_answered_alike(sides: Sides, name: str) -> None:
    mlflow, ours = sides.ask(**SAME[name])
    assert (mlflow.status_code, ours.status_code) == (200, 200), (mlflow.text, ours.text)
    assert ours.json()["predictions"] == mlflow.json()["predictions"]
    assert len(ours.json()["prediction_ids"]) == len(mlflow.json()["predictions"])
    assert mlflow.headers["Content-Type"] == ours.headers["Content-Type"]


REFUSED: dict[str, tuple[int, dict[str, Any]]] = {
    "a missing column": (400, without("distance")),
    "a missing column in csv": (400, typed("text/csv", "carrier,distance\nAA,1000\n")),
    "a string in a double column": (400, record(temp="hot")),
    "a null in an integer column": (400, record(distance=None)),
    "no records": (400, {"json": {"dataframe_records": []}}),
    "no instances": (400, {"json": {"instances": []}}),
    "no body": (400, typed("application/json", "")),
    "bad JSON": (400, typed("application/json", "{")),
    "a list": (400, {"json": [ROW]}),
    "a number": (400, {"json": 5}),
    "null": (400, typed("application/json", "null")),
    "two keys": (400, {"json": {"dataframe_records": [ROW], "inputs": [ROW]}}),
    "no key": (400, {"json": {"rows": [ROW]}}),
    "nothing": (400, {"json": {}}),
    "a column twice": (
        400,
        {"json": {"dataframe_split": {"columns": [*NAMES, "temp"], "data": [[*VALUES, 3.0]]}}},
    ),
    "a short row": (400, {"json": {"dataframe_split": {"columns": NAMES, "data": [[1]]}}}),
    "columns of different lengths": (
        400,
        {"json": {"inputs": {**{name: [ROW[name]] for name in NAMES}, "temp": [1.0, 2.0]}}},
    ),
    "a chat": (400, {"json": {"messages": [{"role": "user", "content": "hi"}]}}),
    "another type": (415, typed("text/html")),
    "another charset": (415, typed("application/json; charset=latin-1")),
    "another parameter": (415, typed("application/json; version=1")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_alike(sides: Sides, name: str) -> None:
    status, sent = REFUSED[name]
    mlflow, ours = sides.ask(**sent)
    assert (mlflow.status_code, ours.status_code) == (status, status), (mlflow.text, ours.text)
    assert set(ours.json()) == {"error_code", "message"}
    assert "Traceback" not in ours.text
    if status != 415:  # MLflow's is plain text
        assert set(ours.json()) <= set(mlflow.json())


BETTER: dict[str, tuple[int, int, dict[str, Any]]] = {
    "split without columns": (400, 200, {"json": {"dataframe_split": {"data": [VALUES]}}}),
    "instances as rows": (400, 200, {"json": {"instances": [VALUES]}}),
    "a missing optional column": (400, 200, without("temp")),
    "a type in capitals": (415, 200, typed("Application/JSON")),
    "no content type": (500, 200, {"data": json.dumps({"dataframe_records": [ROW]}).encode()}),
    "parquet by its other names": (
        415,
        200,
        typed("application/x-parquet", FRAME.to_parquet(index=False)),
    ),
    # what MLflow silently changes before it scores: a wrong column or a wrong unit would go unseen
    "a fraction for an integer": (200, 400, record(distance=1000.5)),
    "a number as text": (200, 400, record(temp="5.5")),
    "a number for text": (200, 400, record(carrier=5)),
    "a boolean for a double": (200, 400, record(temp=True)),
    "a number for a boolean": (200, 400, record(holiday=1)),
    "params that are none": (200, 400, {"json": {"dataframe_records": [ROW], "params": [1]}}),
}


@pytest.mark.parametrize("name", BETTER)
def test_better_on_purpose(sides: Sides, name: str) -> None:
    theirs, ours_expected, sent = BETTER[name]
    mlflow, ours = sides.ask(**sent)
    assert (mlflow.status_code, ours.status_code) == (theirs, ours_expected), (mlflow.text, ours.text)
    assert set(ours.json()) == (
        {"predictions", "prediction_ids"} if ours.status_code == 200 else {"error_code", "message"}
    )


def test_no_refusal_shows_a_traceback(sides: Sides) -> None:
    for sent in (without("temp"), {"json": {"dataframe_split": {"columns": NAMES, "data": []}}}):
        mlflow, ours = sides.ask(**sent)
        assert mlflow.status_code == 400 and "Traceback" in mlflow.text
        assert "Traceback" not in ours.text
    assert ours.json()["message"] == "the body has no rows; send at least one"


def test_a_row_is_answered_alike_in_any_company(sides: Sides) -> None:
    """MLflow makes another value of a null when all of its column is null: the row then gets another answer."""
    lonely = {**ROW, "carrier": None}
    alone = sides.ask(json={"dataframe_records": [lonely]})
    together = sides.ask(json={"dataframe_records": [lonely, ROW]})
    first = [[answer.json()["predictions"][0] for answer in asked] for asked in (alone, together)]
    assert first == [[1, 0], [0, 0]]


def test_rows_are_answered_alike_in_any_form(sides: Sides) -> None:
    """MLflow makes another value of a null text among instances; its own answer to the same records is ours to both."""
    records = sides.ask(json={"dataframe_records": RECORDS})
    instances = sides.ask(json={"instances": RECORDS})
    (mlflow_records, ours_records), (mlflow_instances, ours_instances) = (
        [answer.json()["predictions"] for answer in asked] for asked in (records, instances)
    )
    assert mlflow_records == ours_records == ours_instances
    different = [
        i for i, pair in enumerate(zip(mlflow_records, mlflow_instances, strict=True)) if len(set(pair)) > 1
    ]
    assert different and all(RECORDS[i]["carrier"] is None for i in different)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ping", 200),
        ("GET", "/health", 200),
        ("GET", "/version", 200),
        ("GET", "/invocations", 405),
        ("PUT", "/invocations", 405),
        ("POST", "/ping", 405),
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
    ],
)
def test_routes_are_alike(sides: Sides, method: str, path: str, status: int) -> None:
    mlflow, ours = sides.ask(path, method)
    assert (mlflow.status_code, ours.status_code) == (status, status)
    if status == 200:
        assert ours.text == mlflow.text
    else:
        assert set(ours.json()) == {"error_code", "message"}
    if status == 405:
        assert mlflow.headers["Allow"] in ours.headers["Allow"].split(", ")
