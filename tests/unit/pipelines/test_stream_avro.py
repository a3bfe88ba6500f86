"""Avro records as Pulsar's clients write them: by the schema that each message names."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import TOPIC, received

from mlflow_flywheel.pipelines.errors import BadInput, MissingExtra, Unavailable
from mlflow_flywheel.pipelines.stream.avro import NEWEST, AvroBodies
from mlflow_flywheel.pipelines.stream.messages import SCHEMA_VERSION, Poison
from mlflow_flywheel.pipelines.stream.settings import check_format


def record(**fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": n, "type": t} for n, t in fields.items()]}


SCHEMAS: list[Any] = [record(a="double", b="string"), record(b="string", a=["null", "double"])]


class Registry:
    """A topic's schemas, and how often each was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def schema(self, topic: str, version: int) -> str:
        assert topic == TOPIC
        self.asked.append(version)
        try:
            return json.dumps(SCHEMAS[version])
        except IndexError:
            raise BadInput(f"no schema {version}") from None


def written(value: Any, schema: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return stream.getvalue()


def test_each_message_is_read_by_the_schema_that_it_names_which_is_asked_for_once() -> None:
    registry = Registry()
    bodies = AvroBodies(registry.schema, 1000)
    for version, value in enumerate([{"a": 1.5, "b": "x"}, {"a": None, "b": "y"}]):
        for _ in range(2):
            message = received(written(value, SCHEMAS[version]), schema_version=version)
            assert bodies.read(message) == value
    assert registry.asked == [0, 1]


def test_without_a_version_the_newest_counts_and_one_that_was_sent_again_names_its_own() -> None:
    registry = Registry()
    bodies = AvroBodies(registry.schema, 1000)
    assert bodies.read(received(written({"a": 2.0, "b": "x"}, SCHEMAS[-1])))["a"] == 2.0
    first = written({"a": 3.0, "b": "x"}, SCHEMAS[0])
    assert bodies.read(received(first, properties={SCHEMA_VERSION: "0"}))["a"] == 3.0
    assert registry.asked == [NEWEST, 0]


@pytest.mark.parametrize(
    ("data", "version", "reason"),
    [
        (None, 0, "empty; expected an Avro record"),
        (b"", 0, "empty"),
        (b"\x00" * 2000, 0, "more than the 1000 allowed"),
        (b'{"a": 1}', 0, "no Avro of schema version 0"),
        (written({"a": 1.0, "b": "x"}, SCHEMAS[0]) + b"!", 0, "1 bytes are left over"),
        (written({"a": 1.0, "b": "x"}, SCHEMAS[0])[:-1], 0, "no Avro of schema version 0"),
        (b"\x00", 9, "no schema 9"),
    ],
)
def test_what_is_no_record_says_why(data: bytes | None, version: int, reason: str) -> None:
    with pytest.raises(Poison, match=reason):
        AvroBodies(Registry().schema, 1000).read(received(data, schema_version=version))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [('"string"', "is an Avro str; expected a record"), ("{", "is no Avro"), ('{"type": "x"}', "is no Avro")],
)
def test_a_schema_of_no_record_says_so(schema: str, reason: str) -> None:
    bodies = AvroBodies(lambda topic, version: schema, 1000)
    with pytest.raises(Poison, match=reason):
        bodies.read(received(written("hello", "string"), schema_version=0))


def test_a_schema_that_cannot_be_fetched_now_is_no_fault_of_the_message() -> None:
    def away(topic: str, version: int) -> str:
        raise Unavailable("the broker is away")

    with pytest.raises(Unavailable):
        AvroBodies(away, 1000).read(received(b"x", schema_version=0))


@given(st.binary(min_size=1, max_size=60))
def test_no_bytes_do_anything_but_be_a_record_or_poison(data: bytes) -> None:
    try:
        assert isinstance(AvroBodies(Registry().schema, 1000).read(received(data, schema_version=1)), dict)
    except Poison as poison:
        assert poison.refusal == "malformed"


def test_where_avro_cannot_be_read_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    check_format(False, "avro")
    with pytest.raises(BadInput, match="the embedded broker keeps no schemas; use Apache Pulsar"):
        check_format(True, "avro")
    monkeypatch.setitem(sys.modules, "fastavro", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "mlflow-flywheel\[avro\]"'):
        check_format(False, "avro")
