"""Kennedy's door: flights are published on a topic, and answers are read from another."""

from __future__ import annotations

import threading
import time
from datetime import date
from typing import TYPE_CHECKING

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.stream.client import EventPublisher, OutputReader

from .doors import ANSWER_SECONDS, labels_of
from .flights import EVENT_TIME, FEATURES, KEY, LABEL_TIME

if TYPE_CHECKING:
    import pandas as pd


class StreamDoor:
    """One message per flight, keyed by its number; answers are counted where everybody can read them."""

    def __init__(self, name: str, config: StreamConfig) -> None:
        self.name = name
        self.asked = self.labelled = 0
        self._answers = OutputReader(config)
        self._events = EventPublisher(config)
        self._feedback = EventPublisher(config, config.feedback_topic)
        self._seen: set[str] = set()
        self._trouble: Exception | None = None
        self._closing = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="stream-answers", daemon=True)
        self._listener.start()

    @property
    def answered(self) -> int:
        return len(self._seen)

    def ask(self, day: date, flights: pd.DataFrame) -> None:
        values = flights[list(FEATURES)].to_numpy(dtype=object)
        for features, key, moment in zip(values, flights[KEY], flights[EVENT_TIME], strict=True):
            self._events.publish(
                dict(zip(FEATURES, features, strict=True)),
                key=key.split("/")[1],
                event_time=moment.to_pydatetime(),
                client_request_id=key,
            )
        self._events.flush()
        self.asked += len(flights)

    def label(self, day: date, flights: pd.DataFrame) -> None:
        for label, moment in zip(labels_of(flights), flights[LABEL_TIME], strict=True):
            self._feedback.publish(label, event_time=moment.to_pydatetime())
        self._feedback.flush()
        self.labelled += len(flights)

    def settle(self) -> None:
        deadline, before = time.monotonic() + ANSWER_SECONDS, -1
        while self.answered < self.asked:
            if self._trouble is not None:
                raise self._trouble
            if self.answered != before:
                deadline, before = time.monotonic() + ANSWER_SECONDS, self.answered
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self.name} answered {self.answered} of {self.asked} flights, and no more come"
                )
            time.sleep(0.02)

    def close(self) -> None:
        self._closing.set()
        self._listener.join()
        for part in (self._events, self._feedback, self._answers):
            part.__exit__(None, None, None)

    def _listen(self) -> None:
        try:
            while not self._closing.is_set():
                self._seen.update(answer["client_request_id"] for answer in self._answers.receive())
        except Exception as error:  # noqa: BLE001 - raised where somebody waits
            self._trouble = error
