"""The feedback topic: late labels as JSON messages, into the spool.

A message is one object: `prediction_id` or `client_request_id`, `label`, optionally `label_time` (else the message's
event time, else now) and `source`. Its subscription is the deployment's own, so each deployment sees every label.
A label that comes twice is kept twice and counts once: readers take the latest. Where a live adjustment learns from
them, it has heard of the labels before they are acknowledged.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from mlflow_flywheel.pipelines.adjust.rows import Label
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.feedback import FeedbackLog, parse_feedback

from .dead_letters import DeadLetters, Refused
from .messages import Poison, parse_object
from .patience import Patience
from .pulsar import Consumer
from .stats import StatsKeeper
from .wire import Received

_log = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class FeedbackInbox:
    """Moves labels from the feedback topic to the log until the stop event is set; `kind` is that of predictions."""

    def __init__(
        self,
        log: FeedbackLog,
        kind: str,
        max_bytes: int,
        *,
        inbox: Consumer,
        dead_letters: DeadLetters,
        patience: Patience,
        stats: StatsKeeper,
        stop: threading.Event,
        learn: Callable[[Sequence[Label]], None] = lambda labels: None,
    ) -> None:
        self._labels = log
        self._kind = kind
        self._max_bytes = max_bytes
        self._inbox = inbox
        self._dead_letters = dead_letters
        self._patience = patience
        self._stats = stats
        self._stop = stop
        self._learn = learn

    def run(self) -> None:
        """Work until told to stop. Raises Stopped when that happened in trouble."""
        while not self._stop.is_set():
            batch = self._patience.insist(self._inbox.receive)
            if batch:
                self.handle(batch)

    def handle(self, batch: list[Received]) -> None:
        """Log the labels that can be read, dead-letter the others, acknowledge all."""
        labels: list[Mapping[str, Any]] = []
        lessons: list[Label] = []
        letters: list[Refused] = []
        for message in batch:
            try:
                label, lesson = self._read(message)
                labels.append(label)
                lessons.append(lesson)
            except Poison as poison:
                letters.append(Refused(message, "label", str(poison)))
            except BadInput as error:
                letters.append(Refused(message, "label", error.message.removeprefix("feedback row 0: ")))
        self._patience.insist(lambda: self._labels.submit(labels))
        self._patience.insist(lambda: self._learn(lessons))
        self._dead_letters.send(letters)
        try:
            self._inbox.acknowledge(batch)
        except Unavailable as error:
            _log.warning("%s; these labels will come again", error)
        self._stats.count(feedback=len(labels))
        self._stats.count_refusals(letter.refusal for letter in letters)

    def _read(self, message: Received) -> tuple[Mapping[str, Any], Label]:
        """Return a label as it is logged, and as it is learnt from."""
        label = parse_object(message.data, self._max_bytes)
        if label.get("label_time") is None and message.event_ms:
            try:
                label["label_time"] = (_EPOCH + timedelta(milliseconds=message.event_ms)).isoformat()
            except OverflowError:
                raise Poison("bad_time", f"the event time {message.event_ms} is no time") from None
        known = parse_feedback(label, self._kind)
        lesson = Label(
            known["prediction_id"], known["client_request_id"], known["label"], known["label_time"]
        )
        return label, lesson
