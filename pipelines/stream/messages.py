"""What a message says, and what an answer looks like: the stream's JSON, without any broker.

In: a JSON object with the features at top level or under `features`, optionally `client_request_id`. The event's time
is the configured timestamp column, else the message's event time, else when it was published: that is when the
prediction was asked for, and it is the same when the message is delivered again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig
from mlflow_flywheel.pipelines.times import parse_time

REQUEST_ID = "client_request_id"
PREDICTION_ID = "prediction_id"
_ANSWER_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class Poison(Exception):
    """A message that can never be answered; its text is the reason on the dead letter."""


@dataclass(frozen=True)
class Event:
    """One message, understood: the features are not checked yet."""

    features: Mapping[str, Any]
    client_request_id: str | None
    event_time: datetime


@dataclass(frozen=True)
class InputFormat:
    """How a deployment reads its input topic."""

    max_bytes: int
    id_column: str | None = None
    timestamp_column: str | None = None

    @classmethod
    def of(cls, config: StreamConfig) -> InputFormat:
        """Take what the configuration says about messages."""
        return cls(config.max_message_bytes, config.id_column, config.timestamp_column)

    def parse(
        self, data: bytes | None, properties: Mapping[str, str], event_ms: int, publish_ms: int
    ) -> Event:
        """Read one message. Raises Poison with the reason."""
        body = parse_object(data, self.max_bytes)
        features = body.get("features")
        if not isinstance(features, dict):
            features = body
        request_id = _request_id(features, body, properties, self.id_column)
        column = self.timestamp_column
        stamp = (
            (features.get(column, body.get(column)) if column is not None else None) or event_ms or publish_ms
        )
        return Event(features, request_id, instant(stamp, column or "event time"))


def parse_object(data: bytes | None, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object of at most `max_bytes`; NaN counts as a number, as Python writes it. Raises Poison."""
    if data is None or not data:
        raise Poison("the message is empty; expected a JSON object")
    if len(data) > max_bytes:
        raise Poison(
            f"the message has {len(data)} bytes, more than the {max_bytes} allowed (max_message_bytes)"
        )
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            body = json.loads(data)
            orjson.dumps(body)  # whatever comes in must be able to go out, into the log and the answer
        except (ValueError, TypeError, RecursionError):
            raise Poison(f"the message is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Poison(
            f"the message is a JSON {_json_type(body)}; expected an object that maps features to values"
        )
    return body


def instant(value: Any, what: str) -> datetime:
    """Read a time: ISO 8601 (naive means UTC) or milliseconds since 1970. Raises Poison that names `what`."""
    try:
        return parse_time(value)
    except ValueError:
        raise Poison(
            f"{what} {str(value)[:60]!r} is no time; expected ISO 8601 or milliseconds since 1970"
        ) from None


@dataclass(frozen=True)
class AnswerFormat:
    """What every answer of one model version says about it."""

    model_name: str
    model_version: str

    @classmethod
    def of(cls, ref: ModelRef) -> AnswerFormat:
        """Take the name and version of a model."""
        return cls(ref.name, ref.version)

    def encode(self, event: Event, prediction_id: str, prediction: Any, proba: list[float] | None) -> bytes:
        """Write one answer; `prediction` is what the model itself answered."""
        answer = {
            PREDICTION_ID: prediction_id,
            REQUEST_ID: event.client_request_id,
            "event_time": event.event_time,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "prediction": prediction,
        }
        if proba is not None:
            answer["prediction_proba"] = proba
        return orjson.dumps(answer, default=str, option=_ANSWER_OPTIONS)


def _request_id(
    features: Mapping[str, Any], body: Mapping[str, Any], properties: Mapping[str, str], column: str | None
) -> str | None:
    value = features.get(column, body.get(column)) if column is not None else None
    if value is None:
        value = body.get(REQUEST_ID)
    if value is None:
        return properties.get(REQUEST_ID)
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    name = column or REQUEST_ID
    raise Poison(
        f"{name!r} must be a string or a number to be a request's id, got a JSON {_json_type(value)}"
    )


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
