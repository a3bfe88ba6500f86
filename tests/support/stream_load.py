"""A load of numbered events on a stream deployment, and the check that nothing of it was lost or doubled."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from support.streams import StreamDeployment
from support.waiting import eventually

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.stream.client import OutputReader
from mlflow_flywheel.pipelines.stream.pulsar import Connection, Publisher
from mlflow_flywheel.pipelines.stream.wire import Outgoing, Received

PADDING = "x" * 300


class Load:
    """Publishes about 1,000 numbered events per second until it is ended; what a broker did not store it sends again."""

    def __init__(self, deployment: StreamDeployment) -> None:
        self._config = deployment.config
        self._end = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._publish)
        self.sent = 0

    def start(self) -> Load:
        self._thread.start()
        return self

    def end(self) -> int:
        """Return how many events the broker has confirmed; raises when it has not confirmed all."""
        self._end.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.sent

    def _publish(self) -> None:
        try:
            with Connection.of(self._config, quiet=True) as connection:
                publisher = connection.publisher(self._config.input_topic)
                on_their_way: dict[int, int] = {}
                while not self._end.wait(0.02):
                    for _ in range(20):
                        on_their_way[publisher.send(event(self.sent))] = self.sent
                        self.sent += 1
                    if len(on_their_way) >= 1000:
                        on_their_way = self._send_again(publisher, on_their_way)
                while on_their_way:
                    on_their_way = self._send_again(publisher, on_their_way)
        except BaseException as error:  # noqa: BLE001 (raised again in the test's thread)
            self._error = error

    def _send_again(self, publisher: Publisher, on_their_way: dict[int, int]) -> dict[int, int]:
        return {
            publisher.send(event(on_their_way[number])): on_their_way[number] for number in publisher.flush()
        }


def event(number: int) -> Outgoing:
    body = {"a": number, "b": 1, "c": 0, "d": 0, "padding": PADDING, "client_request_id": str(number)}
    return Outgoing(orjson.dumps(body))


def read_until(
    deployment: StreamDeployment, topic: str, enough: Callable[[list[Received]], bool]
) -> list[Received]:
    """Read a topic from its start until there is enough, and then until nothing more comes for a moment."""
    found: list[Received] = []

    def read() -> bool:
        messages = reader.messages()
        found.extend(messages)
        return not messages and enough(found)

    with OutputReader(deployment.config, topic, start="earliest") as reader:
        eventually(read, 60, every=0, what=f"all messages of {topic}")
    return found


def check_everything_is_there_once(deployment: StreamDeployment, folder: Path, confirmed: int) -> None:
    """Compare the input topic, the table and the answers.

    A publisher whose confirmation was lost with the broker sends again: that is an event of its own on the topic, so
    the topic, not the publisher, says how often an event must be in the table.
    """
    config = deployment.config
    events = {str(number) for number in range(confirmed)}
    published = read_until(
        deployment, config.input_topic, lambda found: events <= {body(m)["client_request_id"] for m in found}
    )
    on_topic = Counter(body(m)["client_request_id"] for m in {m.position: m for m in published}.values())
    assert set(on_topic) == events

    committer = Committer(folder / "spool", str(folder / "tables"))
    table = InferenceTable.open(str(folder / "tables"), config.model.name)

    def caught_up() -> bool:
        committer.commit_once()
        rows = table.counts().rows
        assert rows >= on_topic.total(), f"{rows} of {on_topic.total()}"
        return True

    eventually(caught_up, 60, every=0.5)
    rows = table.read().to_pydict()
    assert Counter(rows["client_request_id"]) == on_topic
    ids = set(rows["prediction_id"])
    assert len(ids) == on_topic.total()
    assert [float(name) + 1 for name in rows["client_request_id"]] == rows["prediction"]

    answers = read_until(
        deployment, config.output_topic, lambda found: ids <= {m.properties["prediction_id"] for m in found}
    )
    assert {(body(m)["prediction_id"], body(m)["prediction"]) for m in answers} == set(
        zip(rows["prediction_id"], rows["prediction"], strict=True)
    )


def body(message: Received) -> Any:
    return orjson.loads(message.data or b"null")


def goes_on(deployment: StreamDeployment, beyond: int) -> None:
    """Return when more than `beyond` messages were handled."""
    eventually(lambda: deployment.stats().messages > beyond, 60, what=f"more than {beyond} messages")
