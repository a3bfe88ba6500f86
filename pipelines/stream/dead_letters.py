"""Messages that can never be answered, on their way to the dead-letter topic: the payload as it was, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from mlflow_flywheel.pipelines.times import EPOCH

from .messages import SCHEMA_VERSION, Refusal
from .patience import Patience
from .publishing import Publishing
from .pulsar import Publisher
from .wire import Outgoing, Received

REASON, REFUSAL, ORIGIN_ID, ORIGIN_TOPIC, ORIGIN_TIME, DEPLOYMENT, TRUNCATED = (
    "reason",
    "refusal",
    "origin_message_id",
    "origin_topic",
    "origin_publish_time",
    "deployment",
    "payload_truncated_from",
)
OURS = (REASON, REFUSAL, ORIGIN_ID, ORIGIN_TOPIC, ORIGIN_TIME, DEPLOYMENT, TRUNCATED)
_LONGEST_REASON = 2000
_SHORTENED_PAYLOAD = 64 * 1024


@dataclass(frozen=True)
class Refused:
    """A message that cannot be answered: why, in a word and in full."""

    message: Received
    refusal: Refusal
    reason: str


def dead_letter(refused: Refused, deployment: str) -> Outgoing:
    """Return the letter for a message: its payload, key, event time and properties, with ours added.

    `origin_message_id` is topic:ledger:entry:batch_index: the prediction_id that its answer would have had.
    """
    message = refused.message
    at = message.position
    properties = {
        **message.properties,
        REASON: refused.reason[:_LONGEST_REASON],
        REFUSAL: refused.refusal,
        ORIGIN_ID: at.prediction_id,
        ORIGIN_TOPIC: at.topic,
        ORIGIN_TIME: (EPOCH + timedelta(milliseconds=message.publish_ms)).isoformat(timespec="milliseconds"),
        DEPLOYMENT: deployment,
    }
    if message.schema_version is not None:
        properties.setdefault(SCHEMA_VERSION, str(message.schema_version))
    return Outgoing(message.data or b"", properties, message.key, message.event_ms)


class DeadLetters:
    """The dead-letter topic of a deployment. One thread at a time."""

    def __init__(self, publisher: Publisher, deployment: str, patience: Patience) -> None:
        self._publisher = publisher
        self._deployment = deployment
        self._patience = patience

    def send(self, letters: Sequence[Refused]) -> None:
        """Publish what was refused; returns when it is stored. Raises Stopped when told to stop before.

        A payload that does not fit together with its reason is cut to 64 KiB, and a property says so.
        """
        messages = [dead_letter(refused, self._deployment) for refused in letters]
        too_big = Publishing(self._publisher, messages, self._patience).finish()
        if too_big:
            shortened = [_shortened(messages[i]) for i in too_big]
            Publishing(self._publisher, shortened, self._patience).finish()


def _shortened(letter: Outgoing) -> Outgoing:
    properties = {key: value for key, value in letter.properties.items() if len(value) <= _LONGEST_REASON}
    properties[TRUNCATED] = str(len(letter.data))
    return Outgoing(letter.data[:_SHORTENED_PAYLOAD], properties, letter.key, letter.event_ms)
