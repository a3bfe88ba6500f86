"""How long after a label's publication a live adjustment answers with what it taught.

Events come all the time; labels come one by one, each of an answer that was read. The time is from the moment that a
label is handed to the broker to the moment that the broker stored the first answer of a later adjustment, whose id
counts the labels learnt.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from stream_sides import event
from support.streams import StreamDeployment

from mlflow_flywheel.pipelines.stream.pulsar import Connection, Publisher, Reader
from mlflow_flywheel.pipelines.stream.wire import Outgoing, Received

_GLANCE_MS = 2
_LONGEST_SECONDS = 10.0


class LabelWatch:
    """A deployment with a live adjustment, an unending trickle of events, and its answers."""

    def __init__(self, connection: Connection, deployment: StreamDeployment) -> None:
        config = deployment.config
        self._events: Publisher = connection.publisher(config.input_topic)
        self._labels: Publisher = connection.publisher(str(config.feedback_topic))
        self._answers: Reader = connection.reader(config.output_topic)
        self._numbers = itertools.count()

    def next_answer(self, wanted: Callable[[dict[str, Any]], bool]) -> tuple[Received, dict[str, Any]]:
        """Publish event after event until an answer is as wanted; return it."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < deadline:
            self._events.publish([Outgoing(event(next(self._numbers)))])
            for message in self._answers.receive(_GLANCE_MS):
                answer = orjson.loads(message.data or b"null")
                if wanted(answer):
                    return message, answer
        raise RuntimeError(f"no such answer came within {_LONGEST_SECONDS:g} s")

    def delay(self) -> float:
        """Publish the label of an answer; return the milliseconds until it has an effect."""
        _, answer = self.next_answer(lambda answer: True)
        known = _learnt(answer)
        label = {"prediction_id": answer["prediction_id"], "label": answer["prediction"]}
        published = 1000 * time.time()
        self._labels.publish([Outgoing(orjson.dumps(label))])
        message, _ = self.next_answer(lambda answer: _learnt(answer) > known)
        return message.publish_ms - published

    def close(self) -> None:
        self._answers.close()


def label_delays(deployment: StreamDeployment, labels: int) -> dict[str, float]:
    """Return p50, p99 and the longest of the delays of so many labels, in milliseconds."""
    config = deployment.config
    deployment.start()
    try:
        deployment.wait_serving()
        with Connection(config.broker, embedded=config.embedded, quiet=True) as connection:
            watch = LabelWatch(connection, deployment)
            delays = [watch.delay() for _ in range(labels)]
            watch.close()
    finally:
        deployment.stop()
    p50, p99 = np.percentile(delays, [50, 99]).tolist()
    return {"labels": labels, "p50": p50, "p99": p99, "longest": max(delays)}


def _learnt(answer: dict[str, Any]) -> int:
    """Return how many labels the adjustment knew that answered: `method:epoch:labels:effect`."""
    return int(answer["adjustment"].split(":")[2])
