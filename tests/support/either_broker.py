"""What a test that runs on both kinds of broker needs: one of them, and deployments without a master."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from support.apache_pulsar import ApachePulsar
from support.streams import BrokerProcess

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.stream.pulsar import Connection
from mlflow_flywheel.pipelines.stream.stats import StatsKeeper, stats_file
from mlflow_flywheel.pipelines.stream.worker import Worker


class EitherBroker:
    """A broker that runs, of either kind."""

    def __init__(self, broker: BrokerProcess | ApachePulsar) -> None:
        self._broker = broker
        self.url = broker.url
        self.embedded = isinstance(broker, BrokerProcess)

    def connect(self, number: int = 0) -> Connection:
        """Open a connection; those that share a subscription need different numbers on the embedded broker."""
        return Connection(self.url, embedded=self.embedded, first_number=number, quiet=True)

    def kill(self) -> None:
        """End it without a warning."""
        self._broker.stop(signal.SIGKILL)

    def start(self) -> None:
        """Bring it back on the same data, and return when it can be used."""
        self._broker.start()

    def config(self, folder: Path, **settings: Any) -> StreamConfig:
        """Return a deployment with topics of its own, whose files are in a folder."""
        name = f"d-{uuid.uuid4().hex[:8]}"
        known = {
            "deployment": name,
            "model": ModelRef(name="m", version="1", path=""),
            "spool": str(folder / "spool"),
            "status_file": str(folder / f"{name}.status.json"),
            "broker": self.url,
            "embedded": self.embedded,
            "input_topic": f"{name}-in",
            "output_topic": f"{name}-out",
            "feedback_topic": f"{name}-feedback",
            "dead_letter_topic": f"{name}-dlq",
            "subscription": name,
        }
        return StreamConfig.model_validate(known | settings)


def doubling_scorer(predict: Callable[[Any], Any] = lambda x: x * 2) -> Scorer:
    """Return a scorer of one feature `x` without a model file behind it."""
    return Scorer(
        ModelRef(name="m", version="1", path=""),
        FeatureSchema([Feature("x", "double")]),
        lambda frame, params: (predict(frame["x"]), None),
        None,
        None,
        "double",
        None,
    )


@contextmanager
def at_work(config: StreamConfig, scorer: Scorer) -> Iterator[StatsKeeper]:
    """Let a worker of this process consume; it is stopped at the end."""
    stats = StatsKeeper(stats_file(config.status_file, 0))
    worker = Worker(config, scorer, stats)
    serving = Event()
    thread = Thread(target=worker.run, args=(serving.set,))
    thread.start()
    try:
        assert serving.wait(30)
        yield stats
    finally:
        worker.stop()
        thread.join()
        stats.close()
