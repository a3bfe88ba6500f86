"""Messages that can never be answered, on their way to the dead-letter topic: the payload as it was, and why."""

from __future__ import annotations

from collections.abc import Sequence

from .patience import Patience
from .pulsar import Publisher
from .wire import Outgoing, Received, SendFailure

REASON, ORIGIN_ID, ORIGIN_TOPIC, DEPLOYMENT, TRUNCATED = (
    "reason",
    "origin_message_id",
    "origin_topic",
    "deployment",
    "payload_truncated_from",
)
_LONGEST_REASON = 2000
_SHORTENED_PAYLOAD = 64 * 1024


def dead_letter(message: Received, reason: str, deployment: str) -> Outgoing:
    """Return the letter for a message: its payload, key, event time and properties, with ours added.

    `origin_message_id` is ledger:entry:partition:batch_index.
    """
    at = message.position
    properties = {
        **message.properties,
        REASON: reason[:_LONGEST_REASON],
        ORIGIN_ID: f"{at.ledger}:{at.entry}:{at.partition}:{at.batch_index}",
        ORIGIN_TOPIC: at.topic,
        DEPLOYMENT: deployment,
    }
    return Outgoing(message.data or b"", properties, message.key, message.event_ms)


class DeadLetters:
    """The dead-letter topic of a deployment. One thread at a time."""

    def __init__(self, publisher: Publisher, deployment: str, patience: Patience) -> None:
        self._publisher = publisher
        self._deployment = deployment
        self._patience = patience

    def send(self, letters: Sequence[tuple[Received, str]]) -> None:
        """Publish (message, reason) pairs; returns when they are stored. Raises Stopped when told to stop before.

        A payload that does not fit together with its reason is cut to 64 KiB, and a property says so.
        """
        messages = [dead_letter(message, reason, self._deployment) for message, reason in letters]
        too_big = publish_all(self._publisher, messages, self._patience)
        if too_big:
            shortened = [_shortened(messages[i]) for i in too_big]
            publish_all(self._publisher, shortened, self._patience)


def publish_all(
    publisher: Publisher, messages: Sequence[Outgoing], patience: Patience
) -> dict[int, SendFailure]:
    """Publish until every message is stored; return those that never will be, by position, as they are too big."""
    waiting = dict(enumerate(messages))
    too_big: dict[int, SendFailure] = {}

    def attempt() -> None:
        numbers = list(waiting)
        failures = publisher.publish([waiting[i] for i in numbers])
        for place, number in enumerate(numbers):
            failure = failures.get(place)
            if failure is None or failure.too_big:
                del waiting[number]
            if failure is not None and failure.too_big:
                too_big[number] = failure
        publisher.raise_for([failures[place] for place in failures if not failures[place].too_big])

    if messages:
        patience.insist(attempt)
    return too_big


def _shortened(letter: Outgoing) -> Outgoing:
    properties = {key: value for key, value in letter.properties.items() if len(value) <= _LONGEST_REASON}
    properties[TRUNCATED] = str(len(letter.data))
    return Outgoing(letter.data[:_SHORTENED_PAYLOAD], properties, letter.key, letter.event_ms)
