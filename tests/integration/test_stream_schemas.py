"""Events of Pulsar's JSON and Avro schemas, written by its own client to a real Apache Pulsar."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulsar
import pytest
from pulsar.schema import AvroSchema, Double, JsonSchema, Record, String
from support.apache_pulsar import ApachePulsar
from support.either_broker import EitherBroker, at_work, doubling_scorer
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.stream.client import OutputReader, publish_and_wait
from mlflow_flywheel.pipelines.stream.letters import LetterBox

pytestmark = pytest.mark.apache


class Weather(Record):  # type: ignore[misc]
    temp = Double()


class Event(Record):  # type: ignore[misc]
    weather = Weather()
    order = String()


class Wider(Record):  # type: ignore[misc]
    note = String(default="none", required_default=True)
    weather = Weather()
    order = String()


Wider.__name__ = "Event"  # the next version of its schema: a field more, before the others


def picky(x: Any) -> Any:
    if (x < 0).any():
        raise ValueError("negative")
    return x * 2


@pytest.fixture
def client(apache_pulsar: ApachePulsar) -> Iterator[pulsar.Client]:
    client = pulsar.Client(apache_pulsar.url, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"))
    yield client
    client.close()


def produce(client: pulsar.Client, topic: str, schema: Any, *values: Any) -> None:
    producer = client.create_producer(topic, schema=schema)
    for value in values:
        producer.send(value)
    producer.close()


@pytest.mark.parametrize(("input_format", "schema"), [("json", JsonSchema), ("avro", AvroSchema)])
def test_events_of_a_schema_and_of_its_next_version_are_answered(
    client: pulsar.Client, apache_pulsar: ApachePulsar, tmp_path: Path, input_format: str, schema: Any
) -> None:
    config = EitherBroker(apache_pulsar).config(
        tmp_path,
        input_format=input_format,
        fields={"x": "weather.temp", "client_request_id": "order"},
    )
    topic = config.input_topic
    apache_pulsar.admin("PUT", f"persistent/public/default/{topic}/partitions", 2)
    with OutputReader(config) as answers, at_work(config, doubling_scorer(picky)) as stats:
        produce(client, topic, schema(Event), Event(weather=Weather(temp=1.5), order="one"))
        produce(client, topic, schema(Wider), Wider(weather=Weather(temp=2.5), order="two", note="n"))
        produce(
            client,
            topic,
            schema(Event),
            Event(weather=Weather(temp=3.5), order="three"),
            Event(weather=Weather(temp=-1.0), order="bad"),
        )
        found = {a["client_request_id"]: a["prediction"] for a in answers.collect(3, 30)}
        assert found == {"one": 3.0, "two": 5.0, "three": 7.0}
        eventually(lambda: stats.now.dead_letters == 1)
        # what is sent again is read by the schema that it was written with, not by the newest
        with LetterBox(config) as box:
            (letter,) = box.look(10)
            assert letter.refusal == "model"
        with LetterBox(config) as box:
            assert box.replay(10).letters == 1
        eventually(lambda: stats.now.dead_letters_by == {"model": 2})


def test_rows_cannot_be_asked_of_a_deployment_that_reads_avro(
    apache_pulsar: ApachePulsar, tmp_path: Path
) -> None:
    config = EitherBroker(apache_pulsar).config(tmp_path, input_format="avro")
    with pytest.raises(BadInput, match="reads avro records, which rows are not; publish events to its topic"):
        publish_and_wait(config, [{"x": 1.0}])
