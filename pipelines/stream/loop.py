"""The stream worker's loop: batch by batch, in an order that loses nothing and shows each event once in the table.

    1. score and log to the spool    a crash after this: delivered again, scored again, left out by the committer
    2. publish answers, dead letters a crash after this: answered twice, with the same prediction_id
    3. wait until they are stored
    4. acknowledge

A message that can never be answered is published to the dead-letter topic with the reason and acknowledged: a negative
acknowledgement would bring its neighbours back too. Trouble that passes (broker or spool away) is waited out with the
one batch in hand; the broker keeps the rest.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.ids import stream_prediction_id
from mlflow_flywheel.pipelines.isolation import Part, score_isolating
from mlflow_flywheel.pipelines.scoring import Request, ScoringCore

from .dead_letters import DeadLetters, publish_all
from .messages import PREDICTION_ID, AnswerFormat, Event, InputFormat, Poison
from .patience import Patience
from .pulsar import Consumer, Publisher
from .stats import StatsKeeper
from .wire import Outgoing, Received

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A message whose content is understood and fits the model."""

    message: Received
    event: Event

    @property
    def prediction_id(self) -> str:
        at = self.message.position
        return stream_prediction_id(at.topic, at.ledger, at.entry, at.batch_index)


class StreamLoop:
    """One worker's loop over its subscription; `run` returns when the stop event is set, after the batch in hand."""

    def __init__(
        self,
        core: ScoringCore,
        input_format: InputFormat,
        *,
        inbox: Consumer,
        answers: Publisher,
        dead_letters: DeadLetters,
        patience: Patience,
        stats: StatsKeeper,
        stop: threading.Event,
    ) -> None:
        self._core = core
        self._input = input_format
        self._output = AnswerFormat.of(core.scorer.ref)
        self._inbox = inbox
        self._answers = answers
        self._dead_letters = dead_letters
        self._patience = patience
        self._stats = stats
        self._stop = stop

    def run(self) -> None:
        """Work until told to stop. Raises Stopped when that happened in trouble: the batch comes again then."""
        while not self._stop.is_set():
            batch = self._patience.insist(self._inbox.receive)
            if batch:
                self.handle(batch)

    def handle(self, batch: list[Received]) -> None:
        """Take one batch through all four steps."""
        started = time.perf_counter()
        rows, letters = self._understand(batch)
        rows, features, more = self._check(rows)
        letters += more
        if rows:
            request = Request(
                features=features,
                prediction_ids=[row.prediction_id for row in rows],
                client_request_ids=[row.event.client_request_id for row in rows],
                event_times=[row.event.event_time for row in rows],
            )
            parts, refused = self._patience.insist(lambda: score_isolating(self._core.score, request))
            letters += [(rows[i].message, reason) for i, reason in refused.items()]
            letters += self._answer(rows, parts)
        self._dead_letters.send(letters)
        try:
            self._inbox.acknowledge(batch)
        except Unavailable as error:
            _log.warning("%s; what was not acknowledged will come again, and be left out of the table", error)
        self._stats.count(
            batches=1, messages=len(batch), rows=len(batch) - len(letters), dead_letters=len(letters)
        )
        self._stats.note(
            last_batch_rows=len(batch),
            last_batch_ms=round(1000 * (time.perf_counter() - started), 3),
            lag_ms=round(1000 * time.time() - max(message.publish_ms for message in batch), 3),
        )

    def _understand(self, batch: list[Received]) -> tuple[list[Row], list[tuple[Received, str]]]:
        rows, letters = [], []
        for message in batch:
            try:
                event = self._input.parse(
                    message.data, message.properties, message.event_ms, message.publish_ms
                )
                rows.append(Row(message, event))
            except Poison as poison:
                letters.append((message, str(poison)))
        return rows, letters

    def _check(self, rows: list[Row]) -> tuple[list[Row], Any, list[tuple[Received, str]]]:
        """Keep the rows whose features fit the model's signature, with their features as one batch."""
        features, kept, reasons = self._core.scorer.schema.split_valid([row.event.features for row in rows])
        letters = [(rows[i].message, reason.removeprefix("row 0: ")) for i, reason in reasons.items()]
        return [rows[i] for i in kept], features, letters

    def _answer(self, rows: list[Row], parts: list[Part]) -> list[tuple[Received, str]]:
        """Publish the answers of what was scored; return the messages whose answers cannot be."""
        letters: list[tuple[Received, str]] = []
        answered: list[Row] = []
        outgoing: list[Outgoing] = []
        for part in parts:
            predictions = part.scored.predictions
            proba = predictions.proba.to_pylist() if predictions.proba is not None else None
            for i, prediction_id in enumerate(part.scored.prediction_ids):
                row = rows[part.start + i]
                try:
                    data = self._output.encode(
                        row.event,
                        prediction_id,
                        predictions.native[i],
                        proba[i] if proba is not None else None,
                    )
                except TypeError as error:
                    letters.append((row.message, f"the model's answer cannot be written as JSON: {error}"))
                    continue
                properties = {**row.message.properties, PREDICTION_ID: prediction_id}
                outgoing.append(Outgoing(data, properties, row.message.key, row.message.event_ms))
                answered.append(row)
        too_big = publish_all(self._answers, outgoing, self._patience)
        for i, failure in too_big.items():
            letters.append((answered[i].message, f"the answer is too big to be published: {failure.reason}"))
        return letters
