"""Kills under load: the worker, the broker, or both at once, at moments that a seed decides."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from support.stream_load import Load, Tally, goes_on, tally_of
from support.streams import BrokerProcess, Keeper, StreamDeployment

from mlflow_flywheel.pipelines.config import ModelRef

KINDS = ("worker", "broker", "both")
_LONGEST_PEACE_SECONDS = 1.0
_LONGEST_GAP_SECONDS = 0.2  # between the two kills of "both"


@dataclass(frozen=True)
class Drilled:
    """A drill that is over: what was killed how often, and what became of the load meanwhile."""

    kind: str
    kills: int
    broker_restarts: int
    seconds: float
    tally: Tally


def drill(
    folder: Path,
    model: ModelRef,
    kind: str,
    rounds: int,
    rate: int,
    random: Random,
    say: Callable[[str], None] = lambda text: None,
) -> Drilled:
    """Kill in each round, wait until messages are handled again, and count at the end what is there.

    The model answers `a + 1`. Broker and deployment are the drill's own, on a fresh folder.
    """
    folder.mkdir()
    started = time.monotonic()
    with ExitStack() as parts:
        broker = BrokerProcess(folder / "broker")
        parts.callback(broker.stop)
        deployment = StreamDeployment(folder, broker.url, f"drill-{kind}", model).start()
        parts.callback(deployment.stop)
        worker = deployment.wait_serving()
        keeper = parts.enter_context(Keeper(broker, deployment.config.status_file))
        load = Load(deployment, rate).start()
        try:
            for number in range(rounds):
                goes_on(deployment, deployment.stats().messages)
                _wait(random.uniform(0, _LONGEST_PEACE_SECONDS))
                before = deployment.stats().messages
                worker = _kill(kind, deployment, broker, worker, random)
                goes_on(deployment, before + rate)
                say(f"{kind}: killed {number + 1} of {rounds} times, {load.sent} events")
        finally:
            confirmed = load.end()
        tally = tally_of(deployment, folder, confirmed)
        assert deployment.stop() == 0, deployment.log.read_text()[-2000:]
    return Drilled(kind, rounds, keeper.restarts, time.monotonic() - started, tally)


def _kill(kind: str, deployment: StreamDeployment, broker: BrokerProcess, worker: int, random: Random) -> int:
    """Kill, and return the pid of the worker that consumes afterwards."""
    kills = [lambda: os.kill(worker, signal.SIGKILL)] if kind != "broker" else []
    kills += [lambda: broker.restart(signal.SIGKILL)] if kind != "worker" else []
    random.shuffle(kills)
    for number, kill in enumerate(kills):
        if number:
            _wait(random.uniform(0, _LONGEST_GAP_SECONDS))
        kill()
    return deployment.wait_serving(other_than=None if kind == "broker" else worker)


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)
