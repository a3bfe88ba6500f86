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
from support.messages import received

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.stream.fields import check_fields, steps_of
from mlflow_flywheel.pipelines.stream.messages import (
    CORRELATION,
    PLAIN,
    AnswerFormat,
    Event,
    InputFormat,
    JsonBodies,
    Poison,
    instant,
)

UTC = timezone.utc
PUBLISHED = datetime(2026, 1, 2, tzinfo=UTC)
PUBLISHED_MS = round(PUBLISHED.timestamp() * 1000)
BODIES = JsonBodies(1000)
FORMAT = InputFormat(BODIES)


def parse(
    body: Any, form: InputFormat = FORMAT, properties: dict[str, str] | None = None, event_ms: int = 0
) -> Event:
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    return form.parse(received(data, properties=properties, event_ms=event_ms, publish_ms=PUBLISHED_MS))


def mapped(**paths: str) -> InputFormat:
    """Return the format of a deployment with these `field.NAME=path` keys."""
    config = StreamConfig.model_construct(fields=paths, id_column=None, timestamp_column=None)
    return InputFormat.of(config, BODIES)


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
        ({"features": {"flight": "UA1"}, "client_request_id": "x"}, InputFormat(BODIES, "flight"), {}, "UA1"),
        ({"features": {"a": 1}, "flight": "UA1"}, InputFormat(BODIES, "flight"), {}, "UA1"),
        ({"features": {"a": 1}, "client_request_id": "x"}, InputFormat(BODIES, "flight"), {}, "x"),
    ],
)
def test_the_request_id_comes_from_the_column_the_body_or_a_property(
    body: Any, form: InputFormat, properties: dict[str, str], expected: str | None
) -> None:
    assert parse(body, form, properties).client_request_id == expected


def test_the_event_time_is_the_column_then_the_messages_then_when_it_was_published() -> None:
    form = InputFormat(BODIES, timestamp_column="at")
    at = datetime(2013, 1, 31, 23, 30, tzinfo=UTC)
    at_ms = round(at.timestamp() * 1000)
    assert parse({"at": "2013-01-31T18:30:00-05:00"}, form, event_ms=5).event_time == at
    assert parse({"at": "2013-01-31T23:30:00Z"}, form).event_time == at
    assert parse({"at": "2013-01-31 23:30:00"}, form).event_time == at
    assert parse({"features": {"at": at_ms}}, form).event_time == at
    assert parse({"at": None}, form, event_ms=at_ms).event_time == at
    assert parse({"at": "2013-01-31T23:30:00Z"}, event_ms=0).event_time == PUBLISHED


WEATHER = {
    "a": 7,
    "weather": {"temp_f": 50.5, "gusts": [3, 5], "x.y": 1},
    "order": {"id": 9, "at": "2013-01-01"},
}


@pytest.mark.parametrize(
    ("paths", "features"),
    [
        ({"temp": "weather.temp_f"}, {"temp": 50.5, "a": 7}),
        ({"gust": "weather.gusts.0"}, {"gust": 3, "a": 7}),
        ({"gust": "weather.gusts.-1"}, {"gust": 5, "a": 7}),
        ({"xy": r"weather.x\.y"}, {"xy": 1, "a": 7}),
        ({"gust": "weather.gusts.2"}, {"a": 7}),
        ({"gust": "weather.gusts.first"}, {"a": 7}),
        ({"temp": "weather.temp_f.deeper"}, {"a": 7}),
        ({"a": "weather.nothing"}, {}),
        ({"a": "weather.temp_f", "temp": "a"}, {"a": 50.5, "temp": 7}),
    ],
)
def test_features_come_from_where_their_paths_say_and_from_nowhere_else(
    paths: dict[str, str], features: dict[str, Any]
) -> None:
    found = parse(WEATHER, mapped(**paths)).features
    assert {name: found[name] for name in found if name not in ("weather", "order")} == features


def test_paths_start_at_the_whole_message_also_where_the_features_are_apart() -> None:
    body = {"features": {"a": 1, "temp": 2}, "weather": {"temp": 3}}
    assert parse(body, mapped(temp="weather.temp")).features == {"a": 1, "temp": 3}
    assert parse(body, mapped(temp="features.a")).features == {"a": 1, "temp": 1}


def test_rows_of_predict_have_features_under_their_own_names() -> None:
    assert parse({"temp": 1}, mapped(temp="weather.temp"), {PLAIN: "1"}).features == {"temp": 1}
    assert parse({"temp": 1}, mapped(temp="weather.temp")).features == {}


def test_the_request_id_and_the_event_time_may_have_paths_too() -> None:
    event = parse(WEATHER, mapped(client_request_id="order.id", event_time="order.at"))
    assert (event.client_request_id, event.event_time) == ("9", datetime(2013, 1, 1, tzinfo=UTC))
    event = parse(
        {"a": 1}, mapped(client_request_id="order.id", event_time="order.at"), {"client_request_id": "p"}
    )
    assert (event.client_request_id, event.event_time) == ("p", PUBLISHED)
    with pytest.raises(Poison, match="event_time 'soon' is no time") as poison:
        parse({"order": {"at": "soon"}}, mapped(event_time="order.at"))
    assert poison.value.refusal == "bad_time"


def test_a_path_for_what_is_no_feature_is_refused_with_the_nearest() -> None:
    schema = FeatureSchema([Feature("temp", "double"), Feature("a", "double")])
    check_fields(["temp", "client_request_id", "event_time"], schema)
    with pytest.raises(BadInput, match=r"field.tmep is no feature of the model \(did you mean 'temp'\?\)"):
        check_fields(["a", "tmep"], schema)


@pytest.mark.parametrize("path", ["", ".", "a..b", ".a", "a."])
def test_a_path_with_an_empty_step_is_none(path: str) -> None:
    with pytest.raises(ValueError, match="is no path"):
        steps_of(path)


def test_an_answer_repeats_the_wanted_properties_and_what_correlates_it() -> None:
    message = received(b"", properties={"a": "1", "b": "2", CORRELATION: "r:0"})
    every = AnswerFormat("m", "3").properties_of(message, "id")
    assert every == {"a": "1", "b": "2", CORRELATION: "r:0", "prediction_id": "id"}
    some = AnswerFormat("m", "3", ("b", "c")).properties_of(message, "id")
    assert some == {"b": "2", CORRELATION: "r:0", "prediction_id": "id"}


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
        parse({"at": stamp}, InputFormat(BODIES, timestamp_column="at"))


def test_nan_as_python_writes_it_is_a_number() -> None:
    assert math.isnan(parse(b'{"a": NaN, "b": 1}').features["a"])


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_parse_or_be_poison(data: bytes) -> None:
    try:
        event = FORMAT.parse(received(data))
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
    assert not {"prediction_proba", "adjustment"} & answer.keys()
    assert answer["prediction"] is None


def test_an_adjusted_answer_says_by_which_adjustment() -> None:
    event = Event({}, None, PUBLISHED)
    answer = orjson.loads(AnswerFormat("m", "3").encode(event, "id", 1.5, None, "bias:1f:7:+0.5"))
    assert (answer["prediction"], answer["adjustment"]) == (1.5, "bias:1f:7:+0.5")
