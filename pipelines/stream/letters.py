"""The dead letters of a deployment, for those who look after them: look at them, send them back, throw them away.

The letters are held by a subscription of the deployment's own, made before its worker can write the first one, so that
no broker drops them before somebody has decided. A letter leaves it by an acknowledgement and nothing else: what is
only looked at, or left over, comes back when the box is closed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, final

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.times import EPOCH, parse_time

from .dead_letters import DEPLOYMENT, ORIGIN_ID, ORIGIN_TIME, OURS, REASON, REFUSAL, TRUNCATED
from .endings import Mark
from .pulsar import ANOTHER_NUMBER, Connection
from .settings import letters_subscription
from .wire import Outgoing, Received

REPLAYED_FROM, _REPLAY = "replayed_from", "flywheel_replay"
_MOST_AT_ONCE = 100  # letters may be large
_FIRST_WAIT_MS = 1000  # a broker takes a moment to begin
_WAIT_MS = 250
_SHOWN_BYTES = 200


@dataclass(frozen=True)
class Letter:
    """One dead letter. `data` is the payload as it came, cut when `cut_from` says how many bytes it had."""

    message: Received

    @property
    def refusal(self) -> str:
        return self._property(REFUSAL)

    @property
    def reason(self) -> str:
        return self._property(REASON)

    @property
    def origin_id(self) -> str:
        """Return topic:ledger:entry:batch_index of the message that was refused."""
        return self._property(ORIGIN_ID)

    @property
    def refused_at(self) -> datetime:
        return EPOCH + timedelta(milliseconds=self.message.publish_ms)

    @property
    def data(self) -> bytes:
        return self.message.data or b""

    @property
    def cut_from(self) -> int | None:
        size = self.message.properties.get(TRUNCATED, "")
        return int(size) if size.isdecimal() else None

    def to_dict(self) -> dict[str, Any]:
        """Return what people and scripts want to know; of the payload only its beginning."""
        return {
            "refusal": self.refusal,
            "reason": self.reason,
            "origin_message_id": self.origin_id,
            "published": self._property(ORIGIN_TIME),
            "refused": self.refused_at.isoformat(timespec="milliseconds"),
            "key": self.message.key,
            "bytes": self.cut_from or len(self.data),
            "payload": self.data[:_SHOWN_BYTES].decode(errors="replace"),
        }

    def again(self, replay: str) -> Outgoing:
        """Return the message to publish for it: as it came the first time, about the same time, from here."""
        kept = {name: value for name, value in self.message.properties.items() if name not in OURS}
        event_ms = self.message.event_ms or self._published_ms()
        properties = {**kept, REPLAYED_FROM: self.origin_id, _REPLAY: replay}
        return Outgoing(self.data, properties, self.message.key, event_ms)

    def _published_ms(self) -> int:
        try:
            return round(1000 * parse_time(self._property(ORIGIN_TIME)).timestamp())
        except ValueError:
            return 0

    def _property(self, name: str) -> str:
        return str(self.message.properties.get(name, ""))


@dataclass(frozen=True)
class Replayed:
    """How many letters were sent back, and how many were not since their payload is not whole."""

    letters: int
    cut: int


@final
class LetterBox:
    """A deployment's letters, opened. A context manager; one at a time, or two share them out between each other.

    It hands each letter out once: what was looked at can be sent back or thrown away by the next box.
    Raises Unavailable when the broker cannot be reached.
    """

    def __init__(self, config: StreamConfig, refusal: str | None = None) -> None:
        self._config = config
        self._refusal = refusal
        self._has_acknowledged = False
        with ExitStack() as parts:
            if config.embedded:  # or letters would stay with the ghost of a command that was killed
                parts.callback(Mark(config.status_file).remove)
            self._connection = parts.enter_context(
                Connection.of(config, first_number=ANOTHER_NUMBER, quiet=True)
            )
            self._inbox = self._connection.consumer(
                config.dead_letter_topic, letters_subscription(config), batch_max=_MOST_AT_ONCE
            )
            self._parts = parts.pop_all()

    def __enter__(self) -> LetterBox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._parts:
            if self._has_acknowledged:
                self._inbox.settle()

    def look(self, limit: int) -> Iterator[Letter]:
        """Yield up to `limit` letters, nearly in the order in which they were written."""
        for letters in self._batches(limit):
            yield from letters

    def replay(self, limit: int) -> Replayed:
        """Send up to `limit` letters back to the topic that they came from, each as a message of its own.

        A letter is removed when its message is stored: a crash in between sends it once more. One that is refused
        again meanwhile is left where it is.
        """
        mark = uuid.uuid4().hex
        events = self._connection.publisher(self._config.input_topic, by_key=self._config.ordering == "key")
        topic = self._config.feedback_topic
        labels = self._connection.publisher(topic) if topic is not None else events
        sent = cut = 0
        for letters in self._batches(limit, lambda letter: letter.message.properties.get(_REPLAY) != mark):
            whole = [letter for letter in letters if letter.cut_from is None]
            for publisher, are_labels in ((events, False), (labels, True)):
                chosen = [letter for letter in whole if (letter.refusal == "label") is are_labels]
                failures = publisher.publish([letter.again(mark) for letter in chosen])
                publisher.raise_for(failures.values())
                self._forget([letter.message for letter in chosen])
            sent += len(whole)
            cut += len(letters) - len(whole)
        return Replayed(sent, cut)

    def purge(self, limit: int, before: datetime) -> int:
        """Throw away up to `limit` letters that were written before a time; return how many."""
        gone = 0
        for letters in self._batches(limit, lambda letter: letter.refused_at < before):
            self._forget([letter.message for letter in letters])
            gone += len(letters)
        return gone

    def _batches(
        self, limit: int, wanted: Callable[[Letter], bool] = lambda letter: True
    ) -> Iterator[list[Letter]]:
        """Yield what is there and wanted until nothing more comes.

        What other deployments wrote to a shared topic is forgotten: their own subscriptions hold it.
        """
        left, wait = limit, _FIRST_WAIT_MS
        while left > 0:
            batch, wait = self._inbox.receive(wait), _WAIT_MS
            if not batch:
                return
            mine = [message for message in batch if self._is_mine(message)]
            self._forget([message for message in batch if not self._is_mine(message)])
            letters = [
                letter for letter in map(Letter, mine) if self._is_asked_for(letter) and wanted(letter)
            ]
            if letters:
                yield letters[:left]
                left -= len(letters[:left])

    def _forget(self, messages: list[Received]) -> None:
        if messages:
            self._inbox.acknowledge(messages)
            self._has_acknowledged = True

    def _is_mine(self, message: Received) -> bool:
        deployment = self._config.deployment
        return message.properties.get(DEPLOYMENT, deployment) == deployment

    def _is_asked_for(self, letter: Letter) -> bool:
        return self._refusal in (None, letter.refusal)
