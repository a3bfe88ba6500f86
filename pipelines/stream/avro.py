"""Avro messages as Pulsar's own clients write them, without a header: the only import of fastavro.

Every message names the version of its topic's schema that it was written with, and the broker gives that schema out:
so a producer may go over to another schema while older messages still wait. A message without a version, from a client
that knows no schemas, is read by the newest.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from typing import Any

from mlflow_flywheel.pipelines.errors import BadInput, MissingExtra

from .messages import SCHEMA_VERSION, Poison, check_size
from .wire import Received

NEWEST = -1


def check_fastavro() -> None:
    """Raise MissingExtra, with the line that installs it, where Avro cannot be read."""
    if importlib.util.find_spec("fastavro") is None:
        raise MissingExtra("input_format=avro", "avro")


class AvroBodies:
    """Reads records by the schemas of their topic; `schema_of` gives one by topic and version, as JSON.

    `schema_of` raises BadInput when there is none, which is said of the message, and Unavailable, which goes through:
    the message is fine and can be read later.
    """

    def __init__(self, schema_of: Callable[[str, int], str], max_bytes: int) -> None:
        check_fastavro()
        self._schema_of = schema_of
        self._max_bytes = max_bytes
        self._schemas: dict[tuple[str, int], Any] = {}

    def read(self, message: Received) -> dict[str, Any]:
        import fastavro

        if not message.data:
            raise Poison("malformed", "the message is empty; expected an Avro record")
        check_size(message.data, self._max_bytes)
        version = _version_of(message)
        schema = self._schema(message.position.topic, version)
        stream = io.BytesIO(message.data)
        try:
            record = fastavro.schemaless_reader(stream, schema, None)
        except Exception as error:  # noqa: BLE001 (whatever the bytes make it trip over)
            said = f"{type(error).__name__} {error}".strip()
            raise Poison("malformed", f"the message is no Avro of {_named(version)}: {said}") from None
        if stream.tell() != len(message.data):
            surplus = len(message.data) - stream.tell()
            raise Poison(
                "malformed", f"the message is no Avro of {_named(version)}: {surplus} bytes are left over"
            )
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise Poison("malformed", f"the message is an Avro {kind}; expected a record of features")
        return record

    def _schema(self, topic: str, version: int) -> Any:
        import fastavro

        key = (topic, version)
        if key not in self._schemas:
            try:
                schema = fastavro.parse_schema(json.loads(self._schema_of(topic, version)))
            except BadInput as error:
                raise Poison("malformed", error.message) from None
            except (ValueError, fastavro.schema.SchemaParseException, fastavro.schema.UnknownType) as error:
                raise Poison("malformed", f"{_named(version)} of its topic is no Avro: {error}") from None
            if version == NEWEST:
                return schema  # tomorrow's may be another
            self._schemas[key] = schema
        return self._schemas[key]


def _version_of(message: Received) -> int:
    told = message.properties.get(SCHEMA_VERSION, "")
    if told.isdecimal():
        return int(told)
    return NEWEST if message.schema_version is None else message.schema_version


def _named(version: int) -> str:
    return "the newest schema" if version == NEWEST else f"schema version {version}"
