"""Messages as they come from a topic and go to one, whatever the client that moves them.

Tuples, as one of each is made per message: a frozen dataclass takes twice as long to make.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from mlflow_flywheel.pipelines.ids import stream_prediction_id


class Position(NamedTuple):
    """Where a message is stored: stable over redelivery and over restarts of the broker.

    `store` is empty, but on a broker that the home keeps: its ledgers begin again when its folder is wiped.
    """

    topic: str
    ledger: int
    entry: int
    partition: int
    batch_index: int
    store: str = ""

    @property
    def prediction_id(self) -> str:
        """Return the id that the prediction of the message there has."""
        topic = f"{self.topic}@{self.store}" if self.store else self.topic
        return stream_prediction_id(topic, self.ledger, self.entry, self.batch_index)


class Received(NamedTuple):
    """One message as it came. Times are milliseconds since 1970; `event_ms` is 0 when the producer gave none.

    `schema_version` is that of its topic's schema, None when its producer knew none.
    """

    data: bytes | None
    properties: Mapping[str, str]
    key: str
    event_ms: int
    publish_ms: int
    position: Position
    handle: Any
    schema_version: int | None = None


def batch_of_several_keys(messages: Iterable[Received]) -> Position | None:
    """Return the place of a message that its producer batched with one of another key; None when there is none.

    A broker gives a batch as a whole to one consumer, by one of its keys: the others are out of order then.
    """
    keys: dict[tuple[str, int, int], str] = {}
    for message in messages:
        at = message.position
        if (
            at.batch_index >= 0
            and keys.setdefault((at.topic, at.ledger, at.entry), message.key) != message.key
        ):
            return at
    return None


class Outgoing(NamedTuple):
    """One message to publish."""

    data: bytes
    properties: Mapping[str, str] = MappingProxyType({})
    key: str = ""
    event_ms: int = 0


@dataclass(frozen=True)
class SendFailure:
    """Why a message was not stored; `too_big` means that it never will be."""

    reason: str
    too_big: bool
