"""Killed workers and a killed broker under load: every event is in the table once and answered at least once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from support.models import ZooModel
from support.stream_drill import drill
from support.stream_load import Load, check_everything_is_there_once, goes_on
from support.streams import BrokerProcess, Keeper, StreamDeployment
from support.waiting import eventually


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path / "broker")
    yield broker
    broker.stop()


@pytest.fixture
def deployment(
    tmp_path: Path, broker: BrokerProcess, zoo: Callable[[str], ZooModel]
) -> Iterator[StreamDeployment]:
    deployment = StreamDeployment(tmp_path, broker.url, "crash", zoo("total").ref).start()
    deployment.wait_serving()
    yield deployment
    assert deployment.stop() == 0


def test_killed_workers_lose_and_double_nothing(
    deployment: StreamDeployment, broker: BrokerProcess, tmp_path: Path
) -> None:
    load = Load(deployment).start()
    with Keeper(broker, deployment.config.status_file) as keeper:
        for stand_still in (False, True, False):
            pid = deployment.wait_serving()
            before = deployment.stats().messages
            goes_on(deployment, before)
            if stand_still:  # what it does not read any more makes it a ghost for the embedded broker
                os.kill(pid, signal.SIGSTOP)
                sent = load.sent
                eventually(lambda sent=sent: load.sent > sent + 500)
            os.kill(pid, signal.SIGKILL)
            deployment.wait_serving(other_than=pid)
            goes_on(deployment, before)
        confirmed = load.end()
        check_everything_is_there_once(deployment, tmp_path, confirmed)
    assert 1 <= keeper.restarts <= 3


def test_a_killed_broker_loses_and_doubles_nothing(
    deployment: StreamDeployment, broker: BrokerProcess, tmp_path: Path
) -> None:
    load = Load(deployment).start()
    worker = deployment.wait_serving()
    for how in (signal.SIGKILL, signal.SIGTERM):
        goes_on(deployment, deployment.stats().messages)
        broker.stop(how)
        broker.start()
        goes_on(deployment, deployment.stats().messages + 100)
    confirmed = load.end()
    check_everything_is_there_once(deployment, tmp_path, confirmed)
    assert deployment.wait_serving() == worker
    assert deployment.stats().broker_restart_wanted is None


def test_worker_and_broker_killed_at_once_lose_and_double_nothing(
    tmp_path: Path, zoo: Callable[[str], ZooModel]
) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    done = drill(tmp_path / "both", zoo("total").ref, "both", rounds=2, rate=500, random=Random(seed))
    assert done.tally.is_complete, done
    assert done.tally.events > 1000


def test_a_worker_waits_for_a_broker_that_is_not_there_yet_and_says_so(
    broker: BrokerProcess, tmp_path: Path, zoo: Callable[[str], ZooModel]
) -> None:
    broker.stop()
    early = StreamDeployment(tmp_path, broker.url, "early", zoo("total").ref).start()
    try:
        trouble = eventually(lambda: early.stats().trouble, 90)
        assert broker.url in trouble
        broker.start()
        early.wait_serving()
        eventually(lambda: early.stats().trouble is None)
    finally:
        assert early.stop() == 0
