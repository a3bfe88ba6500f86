"""A broker that stays away for a while with a backlog on it: what its worker holds meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from support.stream_load import Tally, event, goes_on, handled, tally_of
from support.streams import BrokerProcess, StreamDeployment
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.stream.pulsar import Connection

_LOOK_SECONDS = 0.2
_SEVERAL_BATCHES = 3000  # messages; a batch is at most 1,000


@dataclass(frozen=True)
class Absence:
    """What happened while a broker was away, and what became of its backlog afterwards.

    Memory is the worker's, in bytes; the spool's growth is what was written to it after the broker had gone.
    """

    seconds: float
    waiting: int
    memory_before: int
    memory_most: int
    spool_growth: int
    tally: Tally


def stay_away(folder: Path, model: ModelRef, seconds: float, backlog: int) -> Absence:
    """Kill the broker while its worker works through a backlog, start it again after a while, and count at the end.

    The model answers `a + 1`.
    """
    folder.mkdir()
    with ExitStack() as parts:
        broker = BrokerProcess(folder / "broker")
        parts.callback(broker.stop)
        deployment = StreamDeployment(folder, broker.url, "absence", model)
        with Connection.of(deployment.config, quiet=True) as connection:
            events = connection.publisher(deployment.config.input_topic)
            events.raise_for(events.publish(event(number) for number in range(backlog)).values())
        deployment.start()
        parts.callback(deployment.stop)
        worker = psutil.Process(deployment.wait_serving())
        goes_on(deployment, _SEVERAL_BATCHES)
        broker.stop(signal.SIGKILL)
        gone, waiting = time.monotonic(), backlog - handled(deployment)
        spooled, memory = _size(folder / "spool"), [worker.memory_info().rss]
        while time.monotonic() - gone < seconds:
            threading.Event().wait(_LOOK_SECONDS)
            memory.append(worker.memory_info().rss)
        grown = _size(folder / "spool") - spooled
        broker.start()
        eventually(lambda: handled(deployment) >= backlog, 300, what="the backlog is worked through")
        tally = tally_of(deployment, folder, backlog)
        assert deployment.stop() == 0, deployment.log.read_text()[-2000:]
    return Absence(seconds, waiting, memory[0], max(memory), grown, tally)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.*") if path.suffix in (".open", ".seg"))
