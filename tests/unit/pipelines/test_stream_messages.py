"""What a message may look like, and why one is poison."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.stream.messages import AnswerFormat, Event, InputFormat, Poison, instant

UTC = timezone.utc
PUBLISHED = datetime(2026, 1, 2, tzinfo=UTC)
PUBLISHED_MS = round(PUBLISHED.timestamp() * 1000)
FORMAT = InputFormat(1000)


def parse(
    body: Any, form: InputFormat = FORMAT, properties: dict[str, str] | None = None, event_ms: int = 0
) -> Event:
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    return form.parse(data, properties or {}, event_ms, PUBLISHED_MS)


def test_features_at_top_level_or_under_features_are_the_same() -> None:
    assert parse({"a": 1, "b": "x"}).features["b"] == "x"
    assert parse({"features": {"a": 1, "b": "x"}, "b": "not this"}).features == {"a": 1, "b": "x"}


def test_a_feature_may_be_called_features() -> None:
    assert parse({"features": 3.0, "a": 1}).features == {"features": 3.0, "a": 1}


@pytest.mark.parametrize(
    ("body", "form", "properties", "expected"),
    [
        ({"a": 1}, FORMAT, {}, None),
        ({"a": 1}, FORMAT, {"client_request_id": "p"}, "p"),
        ({"a": 1, "client_request_id": "x"}, FORMAT, {"client_request_id": "p"}, "x"),
        ({"a": 1, "client_request_id": 7}, FORMAT, {}, "7"),
        ({"features": {"flight": "UA1"}, "client_request_id": "x"}, InputFormat(1000, "flight"), {}, "UA1"),
        ({"features": {"a": 1}, "flight": "UA1"}, InputFormat(1000, "flight"), {}, "UA1"),
        ({"features": {"a": 1}, "client_request_id": "x"}, InputFormat(1000, "flight"), {}, "x"),
    ],
)
def test_the_request_id_comes_from_the_column_the_body_or_a_property(
    body: Any, form: InputFormat, properties: dict[str, str], expected: str | None
) -> None:
    assert parse(body, form, properties).client_request_id == expected


def test_the_event_time_is_the_column_then_the_messages_then_when_it_was_published() -> None:
    form = InputFormat(1000, timestamp_column="at")
    at = datetime(2013, 1, 31, 23, 30, tzinfo=UTC)
    at_ms = round(at.timestamp() * 1000)
    assert parse({"at": "2013-01-31T18:30:00-05:00"}, form, event_ms=5).event_time == at
    assert parse({"at": "2013-01-31T23:30:00Z"}, form).event_time == at
    assert parse({"at": "2013-01-31 23:30:00"}, form).event_time == at
    assert parse({"features": {"at": at_ms}}, form).event_time == at
    assert parse({"at": None}, form, event_ms=at_ms).event_time == at
    assert parse({"at": "2013-01-31T23:30:00Z"}, event_ms=0).event_time == PUBLISHED


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 900, "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        ([1, 2], "JSON array"),
        (3, "JSON number"),
        ({"a": "x" * 2000}, "more than the 1000 allowed"),
        ({"client_request_id": {"a": 1}}, "'client_request_id' must be a string or a number"),
        ({"client_request_id": True}, "got a JSON boolean"),
    ],
)
def test_poison_says_why(body: Any, reason: str) -> None:
    with pytest.raises(Poison, match=reason):
        parse(body)


@pytest.mark.parametrize("stamp", ["yesterday", True, [1], {"a": 1}, 1e300, float("nan")])
def test_what_is_no_time_is_poison_and_named(stamp: Any) -> None:
    with pytest.raises(Poison, match="'?at.*is no time"):
        parse({"at": stamp}, InputFormat(1000, timestamp_column="at"))


def test_nan_as_python_writes_it_is_a_number() -> None:
    assert math.isnan(parse(b'{"a": NaN, "b": 1}').features["a"])


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_parse_or_be_poison(data: bytes) -> None:
    try:
        event = FORMAT.parse(data, {}, 0, PUBLISHED_MS)
    except Poison:
        return
    assert isinstance(event.features, dict)


@given(st.integers())
def test_no_number_of_milliseconds_does_anything_but_be_a_time_or_poison(milliseconds: int) -> None:
    try:
        assert instant(milliseconds, "t").tzinfo is not None
    except Poison:
        assert not 0 <= milliseconds < 2**47


def test_an_answer_carries_what_consumers_need() -> None:
    event = Event({}, "r-1", datetime(2013, 1, 1, 12, tzinfo=UTC))
    answer = orjson.loads(AnswerFormat("m", "3").encode(event, "t:1:2:-1", 1, [0.25, 0.75]))
    assert answer == {
        "prediction_id": "t:1:2:-1",
        "client_request_id": "r-1",
        "event_time": "2013-01-01T12:00:00Z",
        "model_name": "m",
        "model_version": "3",
        "prediction": 1,
        "prediction_proba": [0.25, 0.75],
    }


def test_an_answer_without_probabilities_has_no_such_member_and_nan_is_null() -> None:
    event = Event({}, None, PUBLISHED)
    answer = orjson.loads(AnswerFormat("m", "3").encode(event, "id", float("nan"), None))
    assert "prediction_proba" not in answer
    assert answer["prediction"] is None
