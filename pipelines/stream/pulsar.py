"""Pulsar: the only module that imports its client.

Right on Apache Pulsar and careful on the embedded broker (pulsar-lite), which differs in what matters here:

- It knows the consumers of a subscription by a number that every client process counts from 0, so two processes on
  one subscription collide, and a new worker collides with the ghost of a killed one. Workers therefore use up as
  many numbers first as there were starts before theirs (`first_number`).
- A consumer process that is killed can leave a ghost behind that keeps its messages (`endings.py`).
- A negative acknowledgement of one message redelivers its whole producer batch (on Apache Pulsar too, by default), so
  nothing here ever sends one, and nothing is batched on the way into the embedded broker.

Never use a connection after a fork. Close it explicitly: a process that ends without may abort.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, final

import pulsar

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, Unavailable

from .access import Access
from .broker import store_name, takes_connections
from .thread_state import keep_thread_state
from .wire import Outgoing, Position, Received, SendFailure, batch_of_several_keys

_log = logging.getLogger(__name__)

SEND_TIMEOUT_SECONDS = 10.0
_OPERATION_TIMEOUT_SECONDS = 10
_TLS = "pulsar+ssl:"
_BURN_TOPIC = "non-persistent://public/default/flywheel-burn"
_MAX_BATCH_BYTES = 64 * 1024 * 1024
# the embedded broker stalls when more than 8192 messages wait for one connection
_MOST_PREFETCHED_EMBEDDED = 4000
IDLE_MS = 250
ANOTHER_NUMBER = 100  # a first number that no worker has: theirs are below
_PENDING_MESSAGES = 4000
_MOST_HELD = 5000
_UNSUBSCRIBE_ATTEMPTS = 6
_UNSUBSCRIBE_PAUSE = 0.5  # seconds
_LOOK_SECONDS = 0.0005
_MANY_CALLS = 100  # of one batch: then the client's thread keeps its Python state
_OK = pulsar.Result.Ok
_ACKNOWLEDGEMENTS_SENT_AFTER = 0.3  # seconds; the client groups them for 0.1

# what no waiting helps with
_TERMINAL: tuple[type[Exception], ...] = (
    pulsar.AuthenticationError,
    pulsar.AuthorizationError,
    pulsar.InvalidTopicName,
    pulsar.InvalidConfiguration,
    pulsar.InvalidUrl,
    pulsar.IncompatibleSchema,
    pulsar.OperationNotSupported,
    pulsar.NotAllowedError,
)


class Consumer:
    """One member of a Shared or Key_Shared subscription; `by_key` is the latter."""

    def __init__(self, consumer: Any, url: str, store: str = "", *, by_key: bool = False) -> None:
        self._consumer = consumer
        self._url = url
        self._store = store
        self._watches_keys = by_key

    def receive(self, idle_ms: int = IDLE_MS) -> list[Received]:
        """Return the next batch: what comes within its wait after the first; empty when none comes in `idle_ms`."""
        with translated(self._url):
            messages = self._consumer.batch_receive()
            if not messages:
                try:
                    messages = [self._consumer.receive(idle_ms)]
                except pulsar.Timeout:
                    return []
                messages += self._consumer.batch_receive()
            received = [_received(message, self._store) for message in messages]
        if self._watches_keys:
            self._watch_keys(received)
        return received

    def _watch_keys(self, messages: list[Received]) -> None:
        """Say once that somebody publishes so that no order of keys can be kept."""
        mixed = batch_of_several_keys(messages)
        if mixed is not None:
            self._watches_keys = False
            _log.warning(
                "a producer of %s stores messages of several keys in one batch (%d:%d), so ordering=key cannot keep "
                "their order; it must batch by key (BatchingType.KeyBased) or not at all",
                mixed.topic,
                mixed.ledger,
                mixed.entry,
            )

    def acknowledge(self, messages: list[Received]) -> None:
        """Tell the broker that these are done with. It hears of it within 0.1 s: see `settle`."""
        with translated(self._url):
            for message in messages:
                self._consumer.acknowledge(message.handle)

    def seek(self, publish_ms: int) -> None:
        """Let the subscription go on with what was published at or after a time. The embedded broker cannot."""
        with translated(self._url):
            self._consumer.seek(publish_ms)

    @property
    def is_connected(self) -> bool:
        """Whether the broker could send something now; the client connects again by itself."""
        return bool(self._consumer.is_connected())

    def settle(self) -> None:
        """Wait until the client has sent the acknowledgements that it groups; before `close`, or they are repeated."""
        threading.Event().wait(_ACKNOWLEDGEMENTS_SENT_AFTER)

    def unsubscribe(self) -> None:
        """Delete the subscription: the broker no longer keeps messages for it."""
        with translated(self._url):
            self._consumer.unsubscribe()

    def close(self) -> None:
        with translated(self._url):
            self._consumer.close()


class Reader:
    """A look at a topic through a subscription of its own, which `close` deletes.

    Brokers of both kinds stop delivering to a consumer with 50,000 unacknowledged messages, and the embedded one drops
    a connection on which an acknowledgement comes after its consumer is gone, as grouped ones do. So a reader of a few
    messages acknowledges none, and one of many waits for its acknowledgements to be sent.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._held: list[Received] = []
        self._has_acknowledged = False

    def receive(self, idle_ms: int = IDLE_MS) -> list[Received]:
        """Return what came, waiting `idle_ms` for the first."""
        messages = self._consumer.receive(idle_ms)
        self._held += messages
        if len(self._held) > _MOST_HELD:
            self._consumer.acknowledge(self._held)
            self._held = []
            self._has_acknowledged = True
        return messages

    def seek(self, publish_ms: int) -> None:
        """See Consumer."""
        self._consumer.seek(publish_ms)

    @property
    def is_connected(self) -> bool:
        """See Consumer."""
        return self._consumer.is_connected

    def close(self) -> None:
        if self._has_acknowledged:
            self._consumer.settle()
        # the broker may be just restarting: the client connects again by itself
        for _ in range(_UNSUBSCRIBE_ATTEMPTS - 1):
            with suppress(Unavailable):
                return self._consumer.unsubscribe()
            time.sleep(_UNSUBSCRIBE_PAUSE)
        return self._consumer.unsubscribe()


class Sending:
    """Messages on their way to a topic. Each of its counts is written by one thread alone: ours, or the client's."""

    def __init__(self, producer: Any, topic: str, url: str) -> None:
        self._producer = producer
        self._topic = topic
        self._url = url
        self._sent = 0
        self._settled = 0
        self._failures: dict[int, SendFailure] = {}

    @property
    def count(self) -> int:
        return self._sent

    def add(self, messages: Iterable[Outgoing]) -> None:
        """Hand messages over; blocks while 4,000 are on their way."""
        with translated(self._url):
            for message in messages:
                self._producer.send_async(
                    message.data,
                    functools.partial(self._on_settled, self._sent),
                    properties=dict(message.properties),
                    partition_key=message.key or None,
                    event_timestamp=message.event_ms or None,
                )
                self._sent += 1

    def wait(self) -> dict[int, SendFailure]:
        """Return when each is stored, or is known not to be: the failures by number, counted from 0.

        Raises Unavailable when the client says neither in three send timeouts: the connection is of no use any more.
        """
        deadline = time.monotonic() + 3 * SEND_TIMEOUT_SECONDS
        while self._settled < self._sent:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the broker {self._url} leaves messages to topic {self._topic!r} unanswered"
                )
            time.sleep(_LOOK_SECONDS)
        return self._failures

    def _on_settled(self, number: int, result: Any, message_id: Any) -> None:
        if number == _MANY_CALLS:
            keep_thread_state()
        if result != _OK:
            reason = f"topic {self._topic!r}: {result.name}"
            self._failures[number] = SendFailure(reason, result == pulsar.Result.MessageTooBig)
        self._settled += 1


class Publisher:
    """A producer of one topic whose failures are told by number. One thread at a time."""

    def __init__(self, producer: Any, topic: str, url: str) -> None:
        self._producer = producer
        self._topic = topic
        self._url = url
        self._open = Sending(producer, topic, url)

    def start(self, messages: Iterable[Outgoing]) -> Sending:
        """Send messages without waiting for them."""
        sending = Sending(self._producer, self._topic, self._url)
        sending.add(messages)
        return sending

    def publish(self, messages: Iterable[Outgoing]) -> dict[int, SendFailure]:
        """Send all and wait; return the failures by position in `messages`."""
        return self.start(messages).wait()

    def send(self, message: Outgoing) -> int:
        """Send one message, to be waited for by `flush`; return its number there."""
        number = self._open.count
        self._open.add((message,))
        return number

    def flush(self) -> dict[int, SendFailure]:
        """Wait for everything that `send` has sent since the last flush; return the failures by number."""
        sending, self._open = self._open, Sending(self._producer, self._topic, self._url)
        return sending.wait()

    def raise_for(self, failures: Collection[SendFailure]) -> None:
        """Raise Unavailable when there are failures."""
        if failures:
            reasons = sorted({failure.reason for failure in failures})
            raise Unavailable(
                f"the broker {self._url} did not store {len(failures)} messages ({', '.join(reasons)}); "
                "check that it runs there"
            )

    def close(self) -> None:
        with translated(self._url):
            self._producer.close()


@final
class Connection:
    """A client of one broker. A context manager: leaving it closes everything that was opened through it.

    `embedded` says that the broker is pulsar-lite; `first_number` is only for it, see above, and only matters on
    subscriptions that several processes may be on. `access` is how the two know each other, `store` the name of the
    store of a broker that the home keeps. `quiet` is for commands, whose standard output is not a log: what goes wrong
    is raised anyway.
    """

    def __init__(
        self,
        url: str,
        *,
        embedded: bool,
        first_number: int = 0,
        quiet: bool = False,
        access: Access | None = None,
        timeout_seconds: int | None = None,
        store: str = "",
    ) -> None:
        self.url = url
        self._store = store
        self._embedded = embedded
        self._numbers_to_burn = first_number if embedded else 0
        # A logger written in Python can abort the process when the interpreter ends.
        level = pulsar.LoggerLevel
        logger = pulsar.FileLogger(level.Error, os.devnull) if quiet else pulsar.ConsoleLogger(level.Warn)
        access = access or Access()
        with translated(url):
            self._client = pulsar.Client(
                url,
                operation_timeout_seconds=timeout_seconds or _OPERATION_TIMEOUT_SECONDS,
                logger=logger,
                authentication=pulsar.AuthenticationToken(access.token) if access.token else None,
                tls_trust_certs_file_path=access.trusted_certificates() if url.startswith(_TLS) else None,
                tls_validate_hostname=True,
            )

    @classmethod
    def of(cls, config: StreamConfig, *, first_number: int = 0, quiet: bool = False) -> Connection:
        """Open a connection to a deployment's broker, with its credentials."""
        return cls(
            config.broker,
            embedded=config.embedded,
            first_number=first_number,
            quiet=quiet,
            access=Access.of(config),
            store="" if config.broker_store_file is None else store_name(Path(config.broker_store_file)),
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def consumer(
        self,
        topic: str,
        subscription: str,
        *,
        position: Literal["earliest", "latest"] = "earliest",
        batch_max: int = 1000,
        batch_wait_ms: int = 5,
        by_key: bool = False,
    ) -> Consumer:
        """Join a subscription, which is made at `position` if it does not exist yet.

        It is Shared, or with `by_key` Key_Shared: the messages of one key go to one consumer, in their order.
        """
        self._burn_numbers()
        prefetch = min(batch_max, _MOST_PREFETCHED_EMBEDDED) if self._embedded else batch_max
        start = {"earliest": pulsar.InitialPosition.Earliest, "latest": pulsar.InitialPosition.Latest}[
            position
        ]
        with translated(self.url):
            consumer = self._client.subscribe(
                topic,
                subscription,
                pulsar.ConsumerType.KeyShared if by_key else pulsar.ConsumerType.Shared,
                initial_position=start,
                receiver_queue_size=prefetch,
                batch_receive_policy=pulsar.ConsumerBatchReceivePolicy(
                    prefetch, _MAX_BATCH_BYTES, batch_wait_ms
                ),
                batch_index_ack_enabled=not self._embedded,
            )
        return Consumer(consumer, self.url, self._store, by_key=by_key)

    def reader(self, topic: str, *, position: Literal["earliest", "latest"] = "latest") -> Reader:
        """Look at a topic from its start or from now on. A killed process leaves its subscription behind."""
        name = f"flywheel-reader-{uuid.uuid4().hex}"
        return Reader(self.consumer(topic, name, position=position))

    def publisher(self, topic: str, *, batched: bool = True, by_key: bool = False) -> Publisher:
        """Make a producer; with `by_key` a stored batch has one key, as consumers of a Key_Shared subscription need.

        Messages that are to be acknowledged one by one must not be batched on their way in.
        """
        batching = pulsar.BatchingType.KeyBased if by_key else pulsar.BatchingType.Default
        with translated(self.url):
            producer = self._client.create_producer(
                topic,
                send_timeout_millis=int(SEND_TIMEOUT_SECONDS * 1000),
                max_pending_messages=_PENDING_MESSAGES,
                block_if_queue_full=True,
                batching_enabled=batched and not self._embedded,
                batching_max_publish_delay_ms=2,
                batching_type=batching,
                compression_type=pulsar.CompressionType.LZ4,
            )
        return Publisher(producer, topic, self.url)

    def schema(self, topic: str, version: int) -> str:
        """Return a version of a topic's schema, the newest for -1. Raises BadInput when it has none."""
        try:
            with translated(self.url):
                # the client knows how, its wrapper does not
                return str(self._client._client.get_schema_info(topic, version).schema())
        except Unavailable as error:
            if isinstance(error.__cause__, pulsar.TopicNotFound):  # so it is said of schemas too
                raise BadInput(f"topic {topic!r} has no schema (version {version}) on {self.url}") from None
            raise

    def check(self, topic: str) -> None:
        """Ask the broker about a topic; raises what would keep a deployment from using it."""
        with translated(self.url):
            self._client.get_topic_partitions(topic)

    def close(self) -> None:
        """Close everything; the second time does nothing."""
        try:
            self._client.close()
        except pulsar.AlreadyClosed:
            pass
        except pulsar.PulsarException:
            self._client.shutdown()  # the broker is away: nobody is there to say goodbye to

    def _burn_numbers(self) -> None:
        with translated(self.url):
            while self._numbers_to_burn > 0:
                self._client.subscribe(_BURN_TOPIC, uuid.uuid4().hex).close()
                self._numbers_to_burn -= 1


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn the client's exceptions into ours: Unavailable for those that pass, BadInput for those that stay."""
    try:
        yield
    except pulsar.PulsarException as error:
        raise _translation(error, url) from error


def _translation(error: Exception, url: str) -> FlywheelError:
    name = type(error).__name__
    if isinstance(error, (pulsar.AuthenticationError, pulsar.AuthorizationError)):
        return BadInput(
            f"the broker {url} refuses this client ({name}): {error}; check its token and permissions"
        )
    if isinstance(error, _TERMINAL):
        return BadInput(f"the broker {url} does not accept this ({name}): {error}")
    if isinstance(error, pulsar.AlreadyClosed):
        return FlywheelError(f"the connection to the broker {url} was closed; open another")
    if isinstance(error, pulsar.Timeout):
        return _silence(url)
    if isinstance(error, pulsar.TopicNotFound):
        return Unavailable(
            f"the broker {url} has no such topic and makes none ({name}); make it, with its tenant and namespace, or "
            "allow topics to be made"
        )
    if isinstance(error, pulsar.ConnectError) and url.startswith(_TLS):
        return Unavailable(
            f"no trusted connection to the broker {url} ({name}); check that it runs there, that broker_ca_file= is the "
            "authority that signed its certificate, and that the certificate is for this host name"
        )
    return Unavailable(f"the broker {url} cannot be used now ({name}): {error}; check that it runs there")


def _silence(url: str) -> Unavailable:
    """Say what a timeout may mean: the client has no word for a token that the broker refuses."""
    if not takes_connections(url):
        return Unavailable(f"nothing answers at the broker {url}; check that it runs there")
    return Unavailable(
        f"the broker {url} takes connections, but did not answer this client in time; a missing, wrong or expired token "
        "looks like that: check the token (broker_token_env, broker_token_file) or, where the broker wants none, that "
        "it is not overloaded"
    )


def _received(message: Any, store: str) -> Received:
    message_id = message.message_id()
    position = Position(
        message.topic_name(),
        message_id.ledger_id(),
        message_id.entry_id(),
        message_id.partition(),
        message_id.batch_index(),
        store,
    )
    try:
        properties, key = message.properties(), message.partition_key()
    except UnicodeDecodeError:  # bytes from another language's client; the message itself may be fine
        properties, key = {}, ""
    version = message._message.int_schema_version()  # the wrapper has it as bytes only
    return Received(
        None if message.has_null_value() else message.data(),
        properties,
        key,
        message.event_timestamp(),
        message.publish_timestamp(),
        position,
        message,
        None if version < 0 else version,
    )
