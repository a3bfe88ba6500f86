"""The packaged broker as we start it: where it listens, what it survives, and that large messages flow."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.streams import BrokerProcess

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.stream import broker as broker_module
from mlflow_flywheel.pipelines.stream import pulsar as pulsar_module
from mlflow_flywheel.pipelines.stream.broker import (
    embedded_broker,
    find_binary,
    free_port,
    is_ready,
    wait_ready,
)
from mlflow_flywheel.pipelines.stream.client import EventPublisher, OutputReader, publish_and_wait


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path_factory.mktemp("broker"))
    yield broker
    broker.stop()


def config_for(url: str, **topics: str) -> StreamConfig:
    names = {"input_topic": "in", "output_topic": "out", "dead_letter_topic": "dlq", **topics}
    ref = ModelRef(name="m", version="1", path="")
    common = {"deployment": "d", "spool": "", "status_file": "", "subscription": "d", "embedded": True}
    return StreamConfig(broker=url, model=ref, **common, **names)


def test_it_listens_on_one_loopback_port_and_nowhere_else(broker: BrokerProcess) -> None:
    listening = [
        c.laddr for c in psutil.Process(broker.pid).net_connections() if c.status == psutil.CONN_LISTEN
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", broker.broker.port)]


def test_large_messages_do_not_stand_still(broker: BrokerProcess) -> None:
    """With the broker's own default watermark it delivers some of these and then nothing more, for ever."""
    config = config_for(broker.url, output_topic="large")
    padding = os.urandom(20_000).hex()  # compression leaves half of it
    with EventPublisher(config, topic="large") as publisher:
        for number in range(1500):
            publisher.publish({"number": number, "padding": padding})
    with OutputReader(config, start="earliest") as reader:
        found = reader.collect(1500, timeout=30)
    assert [body["number"] for body in found] == list(range(1500))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_it_stored_is_there_after_it_was_ended(tmp_path: Path, how: signal.Signals) -> None:
    broker = BrokerProcess(tmp_path)
    config = config_for(broker.url)
    with EventPublisher(config, topic="out") as publisher:
        for number in range(200):
            publisher.publish({"number": number})
    broker.stop(how)
    broker.start()
    with OutputReader(config, start="earliest") as reader:
        assert [body["number"] for body in reader.collect(200, timeout=20)] == list(range(200))
    broker.stop()


def test_no_broker_is_said_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulsar_module, "_OPERATION_TIMEOUT_SECONDS", 1)
    url = f"pulsar://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=url):
        publish_and_wait(config_for(url), [{"a": 1}], timeout=2)
    assert not is_ready("127.0.0.1", free_port())
    with pytest.raises(Unavailable, match="no broker answers"):
        wait_ready("127.0.0.1", free_port(), timeout=0.05)


def test_no_binary_is_said_with_the_two_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_binary().is_file()
    monkeypatch.setattr(broker_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install.*broker=pulsar://"):
        _ = embedded_broker(tmp_path, 1).command
