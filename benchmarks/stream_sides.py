"""What the stream benchmark compares with, as processes of their own: a naive loop, a broker echo, and the load.

`python benchmarks/stream_sides.py naive|echo|load ...` each speak to the broker with its own client, as a user's script
would. The loops print `ready` when they consume, and work until SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from typing import Any

import orjson
import pulsar

from mlflow_flywheel.pipelines.stream.pulsar import Connection
from mlflow_flywheel.pipelines.stream.wire import Outgoing

EVENT_BYTES = 229
FEATURES = tuple(f"f{i}" for i in range(6))
_PREFETCH = 1000
_BURST_SECONDS = 0.01


def event(number: int) -> bytes:
    """Return one JSON event of 229 bytes: six numbers, an id, and what a producer says besides."""
    values = {name: round((number * 37 % 1000) / 500 - 1 + i, 6) for i, name in enumerate(FEATURES)}
    body = orjson.dumps({"client_request_id": f"event-{number:012}", **values, "source": ""})
    return body[:-2] + b"x" * (EVENT_BYTES - len(body)) + body[-2:]


class Stop:
    """Told by SIGTERM."""

    def __init__(self) -> None:
        self.told = False
        signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_: object) -> None:
        self.told = True


def naive(client: pulsar.Client, options: argparse.Namespace, stop: Stop) -> None:
    """Receive, predict as MLflow's documentation says, send, acknowledge: one message after the other."""
    import mlflow.pyfunc
    import pandas as pd

    model = mlflow.pyfunc.load_model(options.model)
    consumer = _subscribe(client, options)
    producer = client.create_producer(options.output)
    print("ready", flush=True)
    while not stop.told:
        try:
            message = consumer.receive(100)
        except pulsar.Timeout:
            continue
        features = json.loads(message.data())
        frame = pd.DataFrame([{name: features[name] for name in FEATURES}])
        answer = {"prediction": model.predict(frame)[0].item()}
        producer.send(json.dumps(answer).encode(), event_timestamp=message.event_timestamp())
        consumer.acknowledge(message)


def echo(client: pulsar.Client, options: argparse.Namespace, stop: Stop) -> None:
    """Send back what comes, in batches, with every saving that the client has: the limit on this broker."""
    consumer = _subscribe(client, options)
    producer = client.create_producer(
        options.output,
        batching_enabled=not options.embedded,
        batching_max_publish_delay_ms=2,
        max_pending_messages=4000,
        block_if_queue_full=True,
        compression_type=pulsar.CompressionType.LZ4,
    )
    failed: list[Any] = []

    def settled(result: Any, _: Any) -> None:
        if result != pulsar.Result.Ok:
            failed.append(result)

    print("ready", flush=True)
    while not stop.told:
        batch = consumer.batch_receive()
        for message in batch:
            producer.send_async(message.data(), settled, event_timestamp=message.event_timestamp() or None)
        producer.flush()
        if failed:
            sys.exit(f"the broker did not store {len(failed)} messages: {failed[0]}")
        for message in batch:
            consumer.acknowledge(message)


def _subscribe(client: pulsar.Client, options: argparse.Namespace) -> Any:
    return client.subscribe(
        options.input,
        options.subscription,
        pulsar.ConsumerType.Shared,
        initial_position=pulsar.InitialPosition.Earliest,
        receiver_queue_size=_PREFETCH,
        batch_receive_policy=pulsar.ConsumerBatchReceivePolicy(_PREFETCH, -1, 5),
    )


def load(options: argparse.Namespace) -> None:
    """Publish events at a rate; the event time of each is when it was due, also where the publisher came late."""
    with Connection(options.url, embedded=options.embedded, quiet=True) as connection:
        publisher = connection.publisher(options.input)
        started = time.time()
        total = int(options.rate * options.seconds)
        sent = 0
        while sent < total:
            due = min(total, int((time.time() - started) * options.rate))
            for number in range(sent, due):
                at = started + number / options.rate
                publisher.send(Outgoing(event(number), event_ms=round(at * 1000)))
            sent = max(sent, due)
            time.sleep(_BURST_SECONDS)
        publisher.raise_for(publisher.flush().values())


def main() -> None:
    """Run one of the processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("naive", "echo", "load"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output")
    parser.add_argument("--subscription")
    parser.add_argument("--model")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    if options.side == "load":
        load(options)
        return
    stop = Stop()
    client = pulsar.Client(options.url, logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
    try:
        {"naive": naive, "echo": echo}[options.side](client, options, stop)
    finally:
        client.close()


if __name__ == "__main__":
    main()
