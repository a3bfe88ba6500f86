"""What we rely on from a broker, through our own client: the same on the embedded broker and on Apache Pulsar."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from support.either_broker import EitherBroker
from support.waiting import eventually

from mlflow_flywheel.pipelines.stream.pulsar import Connection, Consumer, Sending
from mlflow_flywheel.pipelines.stream.wire import Outgoing, Received


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid.uuid4().hex}"


def numbered(first: int, last: int) -> list[Outgoing]:
    return [Outgoing(b"%d" % number) for number in range(first, last)]


def publish(either_broker: EitherBroker, topic: str, messages: list[Outgoing]) -> None:
    with either_broker.connect() as connection:
        assert connection.publisher(topic).publish(messages) == {}


def drain(
    consumer: Consumer, enough: Callable[[list[Received]], bool], acknowledge: bool = True
) -> list[Received]:
    """Take messages until there are enough, and then what else comes in a quarter of a second."""
    found: list[Received] = []

    def take() -> bool:
        messages = consumer.receive()
        if acknowledge:
            consumer.acknowledge(messages)
        found.extend(messages)
        return not messages and enough(found)

    eventually(take, 30, every=0, what="enough messages")
    return found


def at_least(count: int) -> Callable[[list[Received]], bool]:
    return lambda found: len(found) >= count


def texts(messages: list[Received]) -> list[bytes | None]:
    return [message.data for message in messages]


def test_what_one_consumer_leaves_the_next_one_gets(either_broker: EitherBroker, topic: str) -> None:
    publish(either_broker, topic, numbered(0, 1000))
    found: list[Received] = []
    with either_broker.connect(1) as connection:
        consumer = connection.consumer(topic, "s", batch_max=100)
        while len(found) < 400:
            messages = consumer.receive()
            consumer.acknowledge(messages)
            found += messages
        consumer.settle()
    assert len(found) < 1000
    with either_broker.connect(2) as connection:
        found += drain(connection.consumer(topic, "s"), lambda rest: len(found) + len(rest) >= 1000)
    assert sorted(texts(found)) == sorted(b"%d" % n for n in range(1000))  # type: ignore[type-var]
    assert len({message.position for message in found}) == 1000


def test_two_processes_share_a_subscription(either_broker: EitherBroker, topic: str) -> None:
    """Two connections stand for two processes: on the embedded broker both count their consumers from 0."""
    with either_broker.connect(1) as one, either_broker.connect(2) as other:
        consumers = [connection.consumer(topic, "s", batch_max=10) for connection in (one, other)]
        publisher = one.publisher(topic)
        for first in range(0, 200, 10):  # what is stored as one batch goes to one of them
            assert publisher.publish(numbered(first, first + 10)) == {}
        shares: list[list[Received]] = [[], []]

        def take() -> bool:
            for share, consumer in zip(shares, consumers, strict=True):
                messages = consumer.receive(idle_ms=20)
                consumer.acknowledge(messages)
                share.extend(messages)
            return sum(map(len, shares)) >= 200

        eventually(take, 30, every=0, what="all messages")
        for consumer in consumers:
            consumer.settle()
    assert all(shares)
    assert sorted(texts(shares[0] + shares[1])) == sorted(b"%d" % n for n in range(200))  # type: ignore[type-var]


def test_a_new_subscription_starts_at_the_first_or_at_the_next_message(
    either_broker: EitherBroker, topic: str
) -> None:
    publish(either_broker, topic, numbered(0, 5))
    with either_broker.connect() as connection:
        early = connection.consumer(topic, "early", position="earliest")
        late = connection.consumer(topic, "late", position="latest")
        publish(either_broker, topic, numbered(5, 10))
        assert texts(drain(late, at_least(5))) == [b"%d" % n for n in range(5, 10)]
        assert texts(drain(early, at_least(10))) == [b"%d" % n for n in range(10)]


def test_each_subscription_gets_everything(either_broker: EitherBroker, topic: str) -> None:
    with either_broker.connect() as connection:
        consumers = [connection.consumer(topic, name) for name in "abc"]
        publish(either_broker, topic, numbered(0, 100))
        for consumer in consumers:
            assert texts(drain(consumer, at_least(100))) == [b"%d" % n for n in range(100)]


def test_what_was_not_acknowledged_comes_again_from_the_same_place(
    either_broker: EitherBroker, topic: str
) -> None:
    publish(either_broker, topic, numbered(0, 20))
    with either_broker.connect(1) as connection:
        first = drain(connection.consumer(topic, "s"), at_least(20), acknowledge=False)
    with either_broker.connect(2) as connection:
        second = drain(connection.consumer(topic, "s"), at_least(20))
    assert {m.position: m.data for m in first} == {m.position: m.data for m in second}
    assert len(first) == len(second) == 20


def test_a_message_comes_as_it_was_sent(either_broker: EitherBroker, topic: str) -> None:
    sent = [
        Outgoing(b'{"a": 1}', {"source": "überall", "empty": ""}, "key one", 1_362_096_000_123),
        Outgoing(b"", {}, "", 0),
        Outgoing(bytes(range(256)), {"n": "2"}),
    ]
    publish(either_broker, topic, sent)
    with either_broker.connect() as connection:
        came = drain(connection.consumer(topic, "s"), at_least(3))
    assert [Outgoing(m.data or b"", m.properties, m.key, m.event_ms) for m in came] == sent
    assert all(m.publish_ms > 1_600_000_000_000 for m in came)
    assert {m.position.topic for m in came} == {f"persistent://public/default/{topic}"}


def test_a_message_beyond_the_limit_is_told_from_trouble_that_passes(
    either_broker: EitherBroker, topic: str
) -> None:
    too_big = Outgoing(os.urandom(6 * 1024 * 1024))
    with either_broker.connect() as connection:
        failures = connection.publisher(topic).publish([Outgoing(b"small"), too_big, Outgoing(b"after")])
        assert list(failures) == [1]
        assert failures[1].too_big
        assert texts(drain(connection.consumer(topic, "s"), at_least(2))) == [b"small", b"after"]


def test_the_thread_that_tells_of_a_large_batch_is_not_made_anew_for_each_message(
    either_broker: EitherBroker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python keeps for a thread outlives a call into it only when the thread's state does."""
    here = threading.local()
    calls: list[int] = []
    settled = Sending._on_settled

    def counting(sending: Sending, number: int, result: Any, message_id: Any) -> None:
        here.calls = getattr(here, "calls", 0) + 1
        calls.append(here.calls)
        settled(sending, number, result, message_id)

    monkeypatch.setattr(Sending, "_on_settled", counting)
    publish(either_broker, topic, numbered(0, 300))
    assert len(calls) == 300
    assert max(calls) > 150


def test_a_subscription_that_was_deleted_keeps_nothing(either_broker: EitherBroker, topic: str) -> None:
    with either_broker.connect() as connection:
        consumer = connection.consumer(topic, "s")
        publish(either_broker, topic, numbered(0, 5))
        drain(consumer, at_least(5), acknowledge=False)
        consumer.unsubscribe()
    with either_broker.connect(1) as connection:
        again = connection.consumer(topic, "s", position="latest")
        publish(either_broker, topic, numbered(5, 6))
        assert texts(drain(again, at_least(1))) == [b"5"]


def test_a_reader_takes_nothing_away(either_broker: EitherBroker, topic: str) -> None:
    publish(either_broker, topic, numbered(0, 50))
    with either_broker.connect() as connection:
        consumer = connection.consumer(topic, "s")
        for _ in range(2):
            reader = connection.reader(topic, position="earliest")
            seen: list[Received] = []
            while len(seen) < 50:
                seen += reader.receive()
            reader.close()
            assert texts(seen) == [b"%d" % n for n in range(50)]
        assert len(drain(consumer, at_least(50))) == 50


def test_a_reader_gets_past_what_a_broker_lets_a_consumer_leave_unacknowledged(
    either_broker: EitherBroker, topic: str
) -> None:
    publish(either_broker, topic, numbered(0, 55_000))
    with either_broker.connect() as connection:
        reader = connection.reader(topic, position="earliest")
        seen = 0

        def read() -> bool:
            nonlocal seen
            seen += len(reader.receive())
            return seen >= 55_000

        eventually(read, 60, every=0, what="every message")
        reader.close()
    assert seen == 55_000


def test_a_killed_broker_has_every_message_that_it_confirmed(either_broker: EitherBroker, topic: str) -> None:
    """It is killed while messages are on their way; producer and consumer find it again by themselves."""
    confirmed: set[int] = set()
    end = threading.Event()

    def load(connection: Connection) -> None:
        publisher, number = connection.publisher(topic), 0
        while not end.is_set():
            failures = publisher.publish(numbered(number, number + 200))
            confirmed.update(number + place for place in range(200) if place not in failures)
            number += 200

    with either_broker.connect() as sending, either_broker.connect(1) as receiving:
        consumer = receiving.consumer(topic, "s")
        thread = threading.Thread(target=load, args=(sending,))
        thread.start()
        try:
            eventually(lambda: len(confirmed) >= 2000, 30)
            either_broker.kill()
            either_broker.start()
            before = len(confirmed)
            eventually(lambda: len(confirmed) >= before + 1000, 60)
        finally:
            end.set()
            thread.join()
        wanted = {b"%d" % number for number in confirmed}
        came: set[bytes | None] = set()

        def all_came() -> bool:
            messages = consumer.receive()
            consumer.acknowledge(messages)
            came.update(texts(messages))
            return wanted <= came

        eventually(all_came, 60, every=0, what="every confirmed message")
