"""Bodies of every kind that MLflow's scoring server takes become the same rows; others are refused with a reason."""

from __future__ import annotations

import io
import math
from datetime import datetime, timezone
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cores import SCHEMA

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.web.parsing import Parser, Rows, TooManyRows, UnsupportedMediaType

ROWS = [{"x": 1.0, "city": "Rome"}, {"x": 2.0, "city": None}]
PARSER = Parser(SCHEMA, max_rows=3, id_column="order", timestamp_column="at")


def _json(**body: Any) -> Rows:
    return PARSER.parse(orjson.dumps(body), "application/json; charset=utf-8")


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"city": ["Rome", None], "x": [1.0, 2.0]}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (
            orjson.dumps({"dataframe_split": {"columns": ["city", "x"], "data": [["Rome", 1], [None, 2]]}}),
            "application/json",
        ),
        (
            orjson.dumps({"dataframe_records": [{"city": "Rome", "x": 1, "more": 1}, {"x": 2}]}),
            "application/json",
        ),
        (orjson.dumps({"dataframe_records": ROWS}), None),
        (orjson.dumps({"instances": ROWS}), "application/json"),
        (orjson.dumps({"instances": [[1, "Rome"], [2, None]]}), "application/json"),
        (orjson.dumps({"inputs": {"x": [1, 2], "city": ["Rome", None]}}), "application/json"),
        (b"city,x\nRome,1\n,2\n", "text/csv"),
        (_parquet(), "application/x-parquet"),
    ],
)
def test_every_format_gives_the_same_rows(body: bytes, content_type: str | None) -> None:
    assert PARSER.parse(body, content_type).features(SCHEMA).to_pylist() == ROWS


def test_ids_and_times_come_beside_the_rows_or_from_named_columns() -> None:
    at = datetime(2013, 2, 1, 12, tzinfo=timezone.utc)
    beside = _json(dataframe_records=ROWS, client_request_id=["a", None], event_time="2013-02-01T12:00:00Z")
    assert (beside.client_request_ids, beside.event_times) == (["a", None], [at, at])
    inside = _json(dataframe_records=[{**ROWS[0], "order": 17, "at": "2013-02-01T12:00:00"}])
    assert (inside.client_request_ids, inside.event_times) == (["17"], [at])
    assert _json(instances=ROWS, params={"k": 1}).params == {"k": 1}


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "exactly one of dataframe_split"),
        ({"instances": ROWS, "inputs": {}}, "exactly one of"),
        ({"dataframe_records": []}, "has no rows"),
        ({"dataframe_records": {"x": 1}}, "must be a list of objects"),
        ({"dataframe_records": [{"city": "Rome"}]}, "feature 'x' (double) is missing"),
        ({"dataframe_records": [{"x": "1", "city": "a"}]}, "row 0: feature 'x' must be double, got str '1'"),
        ({"dataframe_split": [1]}, "dataframe_split must be an object"),
        (
            {"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}},
            "row 0 must be a list of 1 values (x), got 2 values",
        ),
        ({"inputs": {"x": [1, 2], "city": ["a"]}}, "different lengths"),
        ({"instances": ROWS, "client_request_id": ["a"]}, "has 1 entries for 2 rows"),
        ({"instances": ROWS, "client_request_id": {"a": 1}}, "client_request_id must be a string"),
        ({"instances": ROWS, "event_time": "soon"}, "row 0: event_time must be ISO 8601"),
        ({"instances": ROWS, "params": 5}, "params must be an object"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_the_reason(body: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput) as caught:
        _json(**body).features(SCHEMA)
    assert complaint in caught.value.message
    assert caught.value.http_status == 400


def test_bodies_of_other_kinds_and_sizes_are_refused() -> None:
    with pytest.raises(BadInput, match="a JSON list"):
        PARSER.parse(b"[1]", "application/json")
    with pytest.raises(BadInput, match="not JSON"):
        PARSER.parse(b"{", "application/json")
    with pytest.raises(BadInput, match="not CSV that fits"):
        PARSER.parse(b"x,city\nmuch,Rome\n", "text/csv")
    with pytest.raises(BadInput, match="not Parquet"):
        PARSER.parse(b"PAR0", "application/x-parquet")
    with pytest.raises(TooManyRows, match="more than the 3 of max_rows"):
        _json(dataframe_records=ROWS * 2)
    for kind in ("text/html", "application/json; charset=latin-1", "application/json; version=2"):
        with pytest.raises(UnsupportedMediaType):
            PARSER.parse(b"{}", kind)


def test_csv_ids_stay_as_they_are_written_and_dates_are_times() -> None:
    rows = PARSER.parse(b"order,at,city,x\n007,2013-02-01,Rome,1\n2013-02-01,2013-02-02,,2\n", "text/csv")
    assert rows.client_request_ids == ["007", "2013-02-01"]
    assert rows.event_times == [datetime(2013, 2, day, tzinfo=timezone.utc) for day in (1, 2)]


@pytest.mark.parametrize("name", ["x", "order"])
def test_a_column_that_is_there_twice_is_refused_where_it_matters(name: str) -> None:
    names = ["x", "city", "order", "other", "other", name]
    table = pa.table([[1.0], ["Rome"], ["a"], [1], [2], [2.0]], names=names)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    csv = (",".join(names) + "\n1,Rome,a,1,2,3\n").encode()
    for body, kind in ((sink.getvalue(), "application/x-parquet"), (csv, "text/csv")):
        with pytest.raises(BadInput):
            PARSER.parse(body, kind).features(SCHEMA)
    with pytest.raises(BadInput, match="'x' is there 2 times"):
        _json(dataframe_split={"columns": ["x", "city", "x"], "data": [[1, "Rome", 2]]})
    without = csv.replace(f",{name}\n".encode(), b",more\n")
    assert PARSER.parse(without, "text/csv").client_request_ids == ["a"]


def test_nan_and_infinity_as_python_writes_them_are_taken() -> None:
    body = b'{"dataframe_records": [{"x": NaN, "city": "a"}, {"x": -Infinity, "city": null}]}'
    first, second = PARSER.parse(body, None).features(SCHEMA).column("x").to_pylist()
    assert math.isnan(first) and second == -math.inf


@pytest.mark.parametrize("name", ["instances", "inputs"])
def test_a_model_of_one_feature_takes_a_plain_list(name: str) -> None:
    schema = FeatureSchema([Feature("x", "double")])
    parser = Parser(schema, max_rows=3)
    body = orjson.dumps({name: [1, 2.5, None]})
    assert parser.parse(body, None).features(schema).column("x").to_pylist() == [1.0, 2.5, None]
    with pytest.raises(BadInput, match="feature 'x' must be double, got str 'a'"):
        parser.parse(orjson.dumps({name: [1, "a"]}), None).features(schema)


def test_a_small_parquet_body_of_many_rows_is_refused_before_it_is_read() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1.0] * 1_000_000, "city": ["Rome"] * 1_000_000}), sink)
    assert len(sink.getvalue()) < 10_000
    with pytest.raises(TooManyRows, match="1000000 rows"):
        PARSER.parse(sink.getvalue(), "application/x-parquet")
