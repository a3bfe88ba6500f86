"""The stream mode against a receive-predict-send-ack loop, and against the limit: a broker echo without a model.

A round fills one topic; then each side works through it, one after the other, by a subscription and an output topic of
its own. Ours is a real master with one worker process: schema check, logging to the spool, dead-letter topic and
feedback subscription are on. A rate is taken from the publish times of the answers on the output topic, so nobody
watches while it runs; the first tenth is warm-up. Latencies are measured at offered rates, from the moment that an
event was due to the moment that a consumer has its answer. Last comes how soon a label changes answers
(`stream_labels.py`). `--apache` adds the same on Apache Pulsar.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from report import publish
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from stream_labels import label_delays
from stream_sides import FEATURES, event
from support.apache_pulsar import ApachePulsar
from support.streams import BrokerProcess, StreamDeployment

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.stream.pulsar import Connection
from mlflow_flywheel.pipelines.stream.wire import Outgoing

GOALS = {
    "rate_vs_naive": ">= 40",
    "rate_vs_echo": ">= 0.7",
    "p99_ms_at_2k": "<= 150",
    "label_to_answer_p99_ms": "<= 1000",
}
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "6"))
BACKLOG_PER_SECOND = 25_000
OFFERED = (2_000, 8_000)
WARM_UP = 0.1
LABELS = 200
SIDES = Path(__file__).with_name("stream_sides.py")


@dataclass(frozen=True)
class Place:
    """A broker."""

    url: str
    embedded: bool


@dataclass(frozen=True)
class Latency:
    """What a consumer of the answers saw at an offered rate: milliseconds, and the share that came in time."""

    p50: float
    p99: float
    answered: float


def save_model(folder: Path) -> Path:
    """Save a logistic regression over the events' numbers; return its folder."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(rng.normal(size=(2000, len(FEATURES))), columns=list(FEATURES))
    label = (frame["f0"] + rng.normal(size=len(frame)) > 0).astype(int)
    model = LogisticRegression().fit(frame, label)
    signature = mlflow.models.infer_signature(frame, model.predict(frame))
    mlflow.sklearn.save_model(model, folder, signature=signature, input_example=frame.head(2))
    return folder


class Bench:
    """The sides, on one broker, with one model."""

    def __init__(self, place: Place, model: Path, folder: Path) -> None:
        self._place = place
        self._model = model
        self._folder = folder
        self.sides = {"naive": self._script("naive"), "echo": self._script("echo"), "ours": self._ours}

    def backlog(self, topic: str, n: int) -> None:
        """Fill a topic with events."""
        with self._connection() as connection:
            publisher = connection.publisher(topic)
            publisher.raise_for(publisher.publish([Outgoing(event(i)) for i in range(n)]).values())

    def rate(self, side: str, topic: str) -> float:
        """Let one side work through a filled topic for a while; return its answers per second."""
        output = f"out-{side}-{uuid.uuid4().hex[:8]}"
        with self.sides[side](topic, output):
            time.sleep(SECONDS)
        times = sorted(self._publish_times(output))
        first = int(len(times) * WARM_UP)
        return (len(times) - 1 - first) / (times[-1] - times[first]) * 1000

    def latency(self, side: str, rate: int) -> Latency:
        """Offer events at a rate and watch one side's answers."""
        topic, output = (f"{what}-{side}-{uuid.uuid4().hex[:8]}" for what in ("in", "out"))
        offered = rate * SECONDS
        waits: list[float] = []
        with self._connection() as connection, self.sides[side](topic, output):
            reader = connection.reader(output)
            with self._process("load", topic, "--rate", str(rate), "--seconds", str(SECONDS)) as load:
                deadline = time.monotonic() + 2 * SECONDS + 10
                while len(waits) < offered and time.monotonic() < deadline:
                    messages = reader.receive(20)
                    now = time.time() * 1000
                    waits += [now - message.event_ms for message in messages]
                if load.wait(60) != 0:
                    raise RuntimeError(f"the load of {rate} messages per second failed")
            reader.close()
        p50, p99 = np.percentile(waits, [50, 99]).tolist()
        return Latency(p50, p99, len(waits) / offered)

    def label_delays(self) -> dict[str, float]:
        """Measure how soon labels have an effect on answers."""
        names = (f"{what}-{uuid.uuid4().hex[:8]}" for what in ("labelled", "answers"))
        return label_delays(self._deployment(*names, adjust="recalibrate"), LABELS)

    def _publish_times(self, topic: str) -> Iterator[int]:
        with self._connection() as connection:
            reader = connection.reader(topic, position="earliest")
            while messages := reader.receive(500):
                yield from (message.publish_ms for message in messages)
            reader.close()

    def _connection(self) -> Connection:
        return Connection(self._place.url, embedded=self._place.embedded, quiet=True)

    def _script(self, side: str) -> Callable[[str, str], AbstractContextManager[Any]]:
        @contextmanager
        def run(topic: str, output: str) -> Iterator[None]:
            subscription = ("--output", output, "--subscription", side, "--model", str(self._model))
            with self._process(side, topic, *subscription) as process:
                assert process.stdout is not None
                if process.stdout.readline() != b"ready\n":
                    raise RuntimeError(f"the {side} side did not start")
                yield

        return run

    @contextmanager
    def _ours(self, topic: str, output: str) -> Iterator[None]:
        deployment = self._deployment(topic, output).start()
        try:
            deployment.wait_serving()
            yield
        finally:
            deployment.stop()

    def _deployment(self, topic: str, output: str, **settings: Any) -> StreamDeployment:
        return StreamDeployment(
            self._folder,
            self._place.url,
            f"ours-{uuid.uuid4().hex[:8]}",
            ModelRef(name="bench", version="1", path=str(self._model)),
            embedded=self._place.embedded,
            input_topic=topic,
            output_topic=output,
            **settings,
        )

    @contextmanager
    def _process(self, side: str, topic: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, str(SIDES), side, "--url", self._place.url, "--input", topic, *more]
        command += ["--embedded"] if self._place.embedded else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextmanager
def running(kind: type[BrokerProcess | ApachePulsar], folder: Path) -> Iterator[Place]:
    """Run a broker on a fresh folder."""
    broker = kind(folder)
    try:
        yield Place(broker.url, embedded=kind is BrokerProcess)
    finally:
        broker.stop()


def measure(model: Path, kind: type[BrokerProcess | ApachePulsar]) -> dict[str, Any]:
    """Measure all sides in rounds, each on a fresh broker; return the medians and every run."""
    rates: dict[str, list[float]] = {}
    waits: dict[str, list[Latency]] = {}
    delays: list[dict[str, float]] = []
    for _ in track(range(ROUNDS), "rounds"):
        with (
            tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name,
            running(kind, Path(name) / "broker") as place,
        ):
            bench = Bench(place, model, Path(name))
            bench.backlog("events", BACKLOG_PER_SECOND * SECONDS)
            for side in bench.sides:
                rates.setdefault(side, []).append(bench.rate(side, "events"))
            for side in ("echo", "ours"):
                for rate in OFFERED:
                    waits.setdefault(f"{side}_{rate}", []).append(bench.latency(side, rate))
            delays.append(bench.label_delays())
    return {
        "rate": {side: median(runs) for side, runs in rates.items()},
        "latency": {
            key: {field: median(getattr(run, field) for run in runs) for field in ("p50", "p99", "answered")}
            for key, runs in waits.items()
        },
        "label_to_answer_ms": {
            field: median(run[field] for run in delays) for field in ("p50", "p99", "longest")
        },
        "runs": {
            "rate": rates,
            "latency": {key: [asdict(run) for run in runs] for key, runs in waits.items()},
            "label_to_answer_ms": delays,
        },
    }


def ratios(measured: dict[str, Any]) -> dict[str, float]:
    """Return what the goals are about."""
    rate = measured["rate"]
    return {
        "rate_vs_naive": rate["ours"] / rate["naive"],
        "rate_vs_echo": rate["ours"] / rate["echo"],
        "p99_ms_at_2k": measured["latency"]["ours_2000"]["p99"],
        "label_to_answer_p99_ms": measured["label_to_answer_ms"]["p99"],
    }


def main() -> None:
    """Measure on the embedded broker, with `--apache` on Apache Pulsar too, and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--apache", action="store_true", help="measure on Apache Pulsar as well (make pulsar)"
    )
    kinds: dict[str, type[BrokerProcess | ApachePulsar]] = {"embedded": BrokerProcess}
    if parser.parse_args().apache:
        kinds["apache"] = ApachePulsar
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name:
        model = save_model(Path(name) / "model")
        measured = {place: measure(model, kind) for place, kind in kinds.items()}
    found = {place: ratios(figures) for place, figures in measured.items()}
    details = {"rounds": ROUNDS, "seconds": SECONDS, "ratios": found, **measured}
    packages = ["mlflow", "scikit-learn", "pulsar-client", "pulsar-lite", "orjson"]
    path = publish("stream", found["embedded"], GOALS, details, packages)
    for place, figures in measured.items():
        said = {"ratios": found[place]} | {
            what: figures[what] for what in ("rate", "latency", "label_to_answer_ms")
        }
        print(f"on the {place} broker:", json.dumps(said, indent=1), sep="\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
