"""The other side of a stream deployment: publish events and labels, read answers, ask and wait.

Everything here opens its own connection and reads through throw-away subscriptions, so it takes nothing away from
anybody else who reads the topics. A process that is killed leaves its throw-away subscription behind.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Literal, final

import orjson

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable

from .dead_letters import REASON
from .fields import REQUEST_ID
from .messages import CORRELATION, PLAIN
from .pulsar import ANOTHER_NUMBER, Connection, Reader
from .settings import feedback_subscription, letters_subscription, start_ms
from .wire import Outgoing, Received

_GLANCE_MS = 10


@final
class EventPublisher:
    """Publishes JSON objects to a topic without waiting for each; leaving the context waits for all.

    The topic is the deployment's input topic unless another is given (`config.feedback_topic` for labels).
    One thread at a time. Raises Unavailable when the broker cannot be reached.
    """

    def __init__(self, config: StreamConfig, topic: str | None = None) -> None:
        self._connection = Connection.of(config, quiet=True)
        try:
            self._publisher = self._connection.publisher(
                topic or config.input_topic, by_key=config.ordering == "key"
            )
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> EventPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self._connection.close()

    def publish(
        self,
        record: Mapping[str, Any],
        *,
        key: str = "",
        event_time: datetime | None = None,
        client_request_id: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Publish one object; `client_request_id` becomes a member of it. A naive `event_time` is UTC.

        Raises BadInput when a value has no place in JSON.
        """
        body = record if client_request_id is None else {**record, REQUEST_ID: client_request_id}
        event_ms = 0 if event_time is None else _milliseconds(event_time)
        self._publisher.send(Outgoing(_to_json(body), properties or {}, key, event_ms))

    def flush(self) -> None:
        """Wait until everything published so far is stored. Raises Unavailable when something is not."""
        self._publisher.raise_for(self._publisher.flush().values())


@final
class OutputReader:
    """Reads a topic of JSON objects, the deployment's answers unless another is given, from now or from its start.

    `count` is how many were read.
    """

    def __init__(
        self,
        config: StreamConfig,
        topic: str | None = None,
        start: Literal["earliest", "latest"] = "latest",
    ) -> None:
        self._connection = Connection.of(config, quiet=True)
        try:
            self._reader = self._connection.reader(topic or config.output_topic, position=start)
        except BaseException:
            self._connection.close()
            raise
        self.count = 0

    def __enter__(self) -> OutputReader:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._reader.close()
        finally:
            self._connection.close()

    def messages(self) -> list[Received]:
        """Return the messages that came, none when none did in a quarter of a second."""
        messages = self._reader.receive()
        self.count += len(messages)
        return messages

    def receive(self) -> list[dict[str, Any]]:
        """Return the objects that came, none when none did in a quarter of a second."""
        return [orjson.loads(message.data or b"null") for message in self.messages()]

    def collect(self, n: int, timeout: float) -> list[dict[str, Any]]:
        """Return the next `n` objects, or those that came within `timeout` seconds when they are fewer."""
        deadline = time.monotonic() + timeout
        found: list[dict[str, Any]] = []
        while len(found) < n and time.monotonic() < deadline:
            found += self.receive()
        return found


def publish_and_wait(
    config: StreamConfig, records: Sequence[Mapping[str, Any]], timeout: float = 30.0
) -> list[dict[str, Any]]:
    """Publish records to the input topic and return their answers, in the same order.

    Raises BadInput with the worker's reasons when it sends a record to the dead-letter topic, Unavailable when the
    broker cannot be reached or an answer does not come within `timeout` seconds.
    """
    if config.input_format != "json":
        raise BadInput(
            f"deployment {config.deployment!r} reads {config.input_format} records, which rows are not; publish events "
            f"to its topic {config.input_topic!r} with a producer of that schema"
        )
    deadline = time.monotonic() + timeout
    request = uuid.uuid4().hex
    marks = {PLAIN: "1"} if config.fields else {}
    events = [
        Outgoing(_to_json(record, row), {**marks, CORRELATION: f"{request}:{row}"})
        for row, record in enumerate(records)
    ]
    answers: dict[int, dict[str, Any]] = {}
    refused: dict[int, str] = {}
    with ExitStack() as open_parts:
        connection = open_parts.enter_context(Connection.of(config, quiet=True))
        outputs = open_parts.enter_context(closing(connection.reader(config.output_topic)))
        letters = open_parts.enter_context(closing(connection.reader(config.dead_letter_topic)))
        publisher = connection.publisher(config.input_topic)
        publisher.raise_for(publisher.publish(events).values())
        while len(answers) + len(refused) < len(events):
            if time.monotonic() > deadline:
                raise _unanswered(config, len(events), len(answers), timeout)
            for row, message in _mine(outputs, request):
                answers.setdefault(row, orjson.loads(message.data or b"null"))
            for row, message in _mine(letters, request):
                refused.setdefault(row, message.properties.get(REASON, "no reason given"))
    if refused:
        reasons = "; ".join(f"row {row}: {reason}" for row, reason in sorted(refused.items())[:5])
        raise BadInput(f"{len(refused)} of {len(events)} rows were refused: {reasons}")
    return [answers[row] for row in range(len(events))]


def begin_at_start_time(config: StreamConfig) -> None:
    """Make a deployment's subscription on its input topic, at its start time if it has one; before its workers start.

    It saves them reading everything from before, which they would pass over. They do on the embedded broker, which
    knows no way to a time.
    """
    start = start_ms(config)
    if start and not config.embedded:
        by_key = config.ordering == "key"
        with Connection.of(config, quiet=True) as connection:
            connection.consumer(config.input_topic, config.subscription, batch_max=1, by_key=by_key).seek(
                start
            )


def drop_subscriptions(config: StreamConfig, *, letters: bool = False) -> None:
    """Delete a deployment's subscriptions after its workers have stopped: the broker keeps no more messages for it.

    With `letters`, its dead letters go too.
    """
    names = {config.input_topic: config.subscription}
    if config.feedback_topic is not None:
        names[config.feedback_topic] = feedback_subscription(config)
    if letters:
        names[config.dead_letter_topic] = letters_subscription(config)
    with Connection.of(config, first_number=ANOTHER_NUMBER, quiet=True) as connection:
        for topic, subscription in names.items():
            by_key = topic == config.input_topic and config.ordering == "key"
            connection.consumer(topic, subscription, batch_max=1, by_key=by_key).unsubscribe()


def _mine(reader: Reader, request: str) -> Iterable[tuple[int, Received]]:
    for message in reader.receive(_GLANCE_MS):
        owner, _, row = message.properties.get(CORRELATION, "").partition(":")
        if owner == request:
            yield int(row), message


def _unanswered(config: StreamConfig, asked: int, answered: int, timeout: float) -> Unavailable:
    return Unavailable(
        f"stream deployment {config.deployment!r} answered {answered} of {asked} rows within {timeout:g} s; "
        f"see `flywheel status` and `flywheel logs {config.deployment}`, or give it more time"
    )


def _milliseconds(time_: datetime) -> int:
    aware = time_.replace(tzinfo=timezone.utc) if time_.tzinfo is None else time_
    return round(aware.timestamp() * 1000)


def _to_json(record: Mapping[str, Any], row: int = 0) -> bytes:
    try:
        return orjson.dumps(
            dict(record), default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z
        )
    except TypeError as error:
        raise BadInput(
            f"row {row} cannot be written as JSON: {error}; give numbers, strings, booleans or None"
        ) from None


def _plain(value: Any) -> Any:
    """Reduce what NumPy and pandas put into rows to what JSON has."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r:.60}")
