"""What a message says, and what an answer looks like: the stream's JSON, without any broker.

In: an object with the features at top level, under `features`, or wherever the configured paths say; optionally
`client_request_id`. The event's time is the configured column or path, else the message's event time, else when it was
published: that is when the prediction was asked for, and it is the same when the message is delivered again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import orjson

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig
from mlflow_flywheel.pipelines.times import parse_time

from .fields import ABSENT, EVENT_TIME, REQUEST_ID, look_up, steps_of
from .wire import Received

PREDICTION_ID = "prediction_id"
SCHEMA_VERSION = "flywheel_schema_version"  # on what is sent again by a client that knows no schemas
PLAIN = "flywheel_plain"  # on rows of `predict`: the features are under their own names, whatever paths events have
CORRELATION = "flywheel_request"  # the property by which one who asks knows his answers
_ANSWER_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

# Why a message is refused, in a word: for counting. `reason` on its dead letter says it in full.
Refusal = Literal[
    "malformed",
    "too_large",
    "bad_id",
    "bad_time",
    "missing_feature",
    "wrong_type",
    "model",
    "answer",
    "label",
]


class Poison(Exception):
    """A message that can never be answered; its text is the reason on the dead letter."""

    def __init__(self, refusal: Refusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal


@dataclass(frozen=True)
class Event:
    """One message, understood: the features are not checked yet."""

    features: Mapping[str, Any]
    client_request_id: str | None
    event_time: datetime


class Bodies(Protocol):
    """How the bytes of a message become an object. Raises Poison when they do not."""

    def read(self, message: Received) -> dict[str, Any]: ...


@dataclass(frozen=True)
class JsonBodies:
    """Messages that are JSON objects, whether or not their producer says so in a schema."""

    max_bytes: int

    def read(self, message: Received) -> dict[str, Any]:
        return parse_object(message.data, self.max_bytes)


@dataclass(frozen=True)
class InputFormat:
    """How a deployment reads its input topic: `fields` are paths by feature, `client_request_id` and `event_time`."""

    bodies: Bodies
    id_column: str | None = None
    timestamp_column: str | None = None
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: StreamConfig, bodies: Bodies) -> InputFormat:
        """Take what the configuration says about messages."""
        fields = {name: steps_of(path) for name, path in config.fields.items()}
        return cls(
            bodies,
            config.id_column or (REQUEST_ID if REQUEST_ID in fields else None),
            config.timestamp_column or (EVENT_TIME if EVENT_TIME in fields else None),
            fields,
        )

    def parse(self, message: Received) -> Event:
        """Read one message. Raises Poison with the reason."""
        body = self.bodies.read(message)
        features = body.get("features")
        if not isinstance(features, dict):
            features = body
        if self.fields and PLAIN not in message.properties:
            features = self._mapped(features, body)
        request_id = _request_id(features, body, message.properties, self.id_column)
        column = self.timestamp_column
        stamp = (
            (features.get(column, body.get(column)) if column is not None else None)
            or message.event_ms
            or message.publish_ms
        )
        return Event(features, request_id, instant(stamp, column or "event time"))

    def _mapped(self, features: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the features with those that have a path taken from there, and from nowhere else."""
        own = {name: value for name, value in features.items() if name not in self.fields}
        found = ((name, look_up(body, steps)) for name, steps in self.fields.items())
        return own | {name: value for name, value in found if value is not ABSENT}


def parse_object(data: bytes | None, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object of at most `max_bytes`; NaN counts as a number, as Python writes it. Raises Poison."""
    if data is None or not data:
        raise Poison("malformed", "the message is empty; expected a JSON object")
    check_size(data, max_bytes)
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            body = json.loads(data)
            orjson.dumps(body)  # whatever comes in must be able to go out, into the log and the answer
        except (ValueError, TypeError, RecursionError):
            raise Poison("malformed", f"the message is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Poison(
            "malformed",
            f"the message is a JSON {_json_type(body)}; expected an object that maps features to values",
        )
    return body


def check_size(data: bytes, max_bytes: int) -> None:
    """Raise Poison when a message is larger than the deployment takes."""
    if len(data) > max_bytes:
        raise Poison(
            "too_large",
            f"the message has {len(data)} bytes, more than the {max_bytes} allowed (max_message_bytes)",
        )


def instant(value: Any, what: str) -> datetime:
    """Read a time: ISO 8601 (naive means UTC) or milliseconds since 1970. Raises Poison that names `what`."""
    try:
        return parse_time(value)
    except ValueError:
        raise Poison(
            "bad_time", f"{what} {str(value)[:60]!r} is no time; expected ISO 8601 or milliseconds since 1970"
        ) from None


@dataclass(frozen=True)
class AnswerFormat:
    """What every answer of one model version says about it, and which of a message's properties it repeats."""

    model_name: str
    model_version: str
    properties: tuple[str, ...] = ("*",)

    @classmethod
    def of(cls, ref: ModelRef, properties: tuple[str, ...] = ("*",)) -> AnswerFormat:
        """Take the name and version of a model."""
        return cls(ref.name, ref.version, properties)

    def properties_of(self, message: Received, prediction_id: str) -> dict[str, str]:
        """Return the properties of a message's answer."""
        known = message.properties
        wanted = known if "*" in self.properties else (*self.properties, CORRELATION)
        return {name: known[name] for name in wanted if name in known} | {PREDICTION_ID: prediction_id}

    def encode(
        self,
        event: Event,
        prediction_id: str,
        prediction: Any,
        proba: list[float] | None,
        adjustment: str | None = None,
    ) -> bytes:
        """Write one answer; `prediction` is as the model itself answers, `adjustment` the id of a live one."""
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
        if adjustment is not None:
            answer["adjustment"] = adjustment
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
        "bad_id",
        f"{name!r} must be a string or a number to be a request's id, got a JSON {_json_type(value)}",
    )


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
