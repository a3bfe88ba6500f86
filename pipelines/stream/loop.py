"""The stream worker's loop: batch by batch, in an order that loses nothing and shows each event once in the table.

    1. score and log to the spool    a crash after this: delivered again, scored again, left out by the committer
    2. publish answers, dead letters a crash after this: answered twice, with the same prediction_id
    3. wait until they are stored
    4. acknowledge

A message that can never be answered is published to the dead-letter topic with the reason and acknowledged: a negative
acknowledgement would bring its neighbours back too. While the answers of one batch are being stored, the next one is
scored. Trouble that passes (broker or spool away) is waited out with these two in hand; the broker keeps the rest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.isolation import Part, score_isolating
from mlflow_flywheel.pipelines.schema import FeatureSchema
from mlflow_flywheel.pipelines.scoring import Request, ScoringCore

from .dead_letters import Refused
from .messages import AnswerFormat, Event, InputFormat, Poison, Refusal
from .patience import Patience
from .publishing import Publishing
from .pulsar import IDLE_MS, Publisher
from .stats import StatsKeeper
from .wire import Outgoing, Received

_log = logging.getLogger(__name__)
_A_MOMENT_MS = 1


@dataclass(frozen=True)
class Row:
    """A message whose content is understood and fits the model."""

    message: Received
    event: Event

    @property
    def prediction_id(self) -> str:
        return self.message.position.prediction_id


@dataclass(frozen=True)
class InHand:
    """A batch that is scored and logged, and whose answers are on their way to their topic."""

    batch: list[Received]
    due: list[Received]
    letters: list[Refused]
    answered: list[Row]
    answers: Publishing
    started: float

    @property
    def oldest_ms(self) -> int:
        return min(message.publish_ms for message in self.batch)


class Inbox(Protocol):
    """Where batches come from: a `Consumer`, or what stands for one."""

    def receive(self, idle_ms: int) -> list[Received]: ...
    def acknowledge(self, messages: list[Received]) -> None: ...


class Letters(Protocol):
    """Where refused messages go: `DeadLetters`, or what stands for them."""

    def send(self, letters: Sequence[Refused]) -> None: ...


class StreamLoop:
    """One worker's loop over its subscription; `run` returns when the stop event is set, after what is in hand.

    A message that is not due is acknowledged and nothing else.
    """

    def __init__(
        self,
        core: ScoringCore,
        input_format: InputFormat,
        answer_format: AnswerFormat,
        *,
        inbox: Inbox,
        answers: Publisher,
        dead_letters: Letters,
        patience: Patience,
        stats: StatsKeeper,
        stop: threading.Event,
        is_due: Callable[[Received], bool] = lambda message: True,
        around_scoring: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._core = core
        self._input = input_format
        self._output = answer_format
        self._inbox = inbox
        self._answers = answers
        self._dead_letters = dead_letters
        self._patience = patience
        self._stats = stats
        self._stop = stop
        self._is_due = is_due
        self._around_scoring = around_scoring

    def run(self) -> None:
        """Work until told to stop. Raises Stopped when that happened in trouble: what is in hand comes again then."""
        in_hand: InHand | None = None
        while not self._stop.is_set():
            batch = self._receive(IDLE_MS if in_hand is None else _A_MOMENT_MS)
            earlier, in_hand = in_hand, None
            try:
                if batch:
                    in_hand = self._begin(batch)
            finally:
                if earlier is not None:
                    self._finish(earlier)
            if in_hand is None:
                self._stats.note(oldest_ms=None)
        if in_hand is not None:
            self._finish(in_hand)

    def handle(self, batch: list[Received]) -> None:
        """Take one batch through all four steps."""
        self._finish(self._begin(batch))

    def _receive(self, idle_ms: int) -> list[Received]:
        return self._patience.insist(lambda: self._inbox.receive(idle_ms))

    def _begin(self, batch: list[Received]) -> InHand:
        """Score and log a batch, and send its answers on their way."""
        started = time.perf_counter()
        if self._stats.now.oldest_ms is None:
            self._stats.note(oldest_ms=min(message.publish_ms for message in batch))
        due = [message for message in batch if self._is_due(message)]
        rows, letters = self._patience.insist(lambda: self._understand(due))  # a schema may be away
        rows, features, more = self._check(rows)
        letters += more
        answered: list[Row] = []
        outgoing: list[Outgoing] = []
        if rows:
            request = Request(
                features=features,
                prediction_ids=[row.prediction_id for row in rows],
                client_request_ids=[row.event.client_request_id for row in rows],
                event_times=[row.event.event_time for row in rows],
            )
            with self._around_scoring():
                parts, refused = self._patience.insist(lambda: score_isolating(self._core.score, request))
            letters += [Refused(rows[i].message, "model", reason) for i, reason in refused.items()]
            answered, outgoing, more = self._answer(rows, parts)
            letters += more
        answers = Publishing(self._answers, outgoing, self._patience)
        return InHand(batch, due, letters, answered, answers, started)

    def _finish(self, work: InHand) -> None:
        """Wait until a batch's answers and dead letters are stored, and acknowledge it."""
        self._stats.note(oldest_ms=work.oldest_ms)
        letters = list(work.letters)
        for i, failure in work.answers.finish().items():
            reason = f"the answer is too big to be published: {failure.reason}"
            letters.append(Refused(work.answered[i].message, "answer", reason))
        self._dead_letters.send(letters)
        self._stats.answered([message.publish_ms for message in work.due])
        try:
            self._inbox.acknowledge(work.batch)
        except Unavailable as error:
            _log.warning("%s; what was not acknowledged will come again, and be left out of the table", error)
        handled, due = len(work.batch), len(work.due)
        self._stats.count(batches=1, messages=handled, rows=due - len(letters), skipped=handled - due)
        self._stats.count_refusals(letter.refusal for letter in letters)
        self._stats.note(
            last_batch_rows=handled, last_batch_ms=round(1000 * (time.perf_counter() - work.started), 3)
        )

    def _understand(self, batch: list[Received]) -> tuple[list[Row], list[Refused]]:
        rows, letters = [], []
        for message in batch:
            try:
                rows.append(Row(message, self._input.parse(message)))
            except Poison as poison:
                letters.append(Refused(message, poison.refusal, str(poison)))
        return rows, letters

    def _check(self, rows: list[Row]) -> tuple[list[Row], Any, list[Refused]]:
        """Keep the rows whose features fit the model's signature, with their features as one batch."""
        schema = self._core.scorer.schema
        features, kept, reasons = schema.split_valid([row.event.features for row in rows])
        letters = [
            Refused(rows[i].message, _refusal(schema, rows[i].event.features), reason.removeprefix("row 0: "))
            for i, reason in reasons.items()
        ]
        return [rows[i] for i in kept], features, letters

    def _answer(self, rows: list[Row], parts: list[Part]) -> tuple[list[Row], list[Outgoing], list[Refused]]:
        """Write the answers of what was scored: the rows that have one, their answers, and what has none."""
        answered: list[Row] = []
        outgoing: list[Outgoing] = []
        letters: list[Refused] = []
        for part in parts:
            predictions = part.scored.predictions
            proba = predictions.proba.to_pylist() if predictions.proba is not None else None
            adjustments = part.scored.adjustments
            for i, prediction_id in enumerate(part.scored.prediction_ids):
                row = rows[part.start + i]
                try:
                    data = self._output.encode(
                        row.event,
                        prediction_id,
                        predictions.native[i],
                        proba[i] if proba is not None else None,
                        adjustments[i] if adjustments is not None else None,
                    )
                except TypeError as error:
                    reason = f"the model's answer cannot be written as JSON: {error}"
                    letters.append(Refused(row.message, "answer", reason))
                    continue
                properties = self._output.properties_of(row.message, prediction_id)
                outgoing.append(Outgoing(data, properties, row.message.key, row.message.event_ms))
                answered.append(row)
        return answered, outgoing, letters


def _refusal(schema: FeatureSchema, features: Mapping[str, Any]) -> Refusal:
    """Say in a word why these features do not fit."""
    missing = any(feature.required and feature.name not in features for feature in schema.features)
    return "missing_feature" if missing else "wrong_type"
